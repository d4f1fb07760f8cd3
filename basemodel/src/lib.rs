//! Reading a base model from disk: where it lies, what it is, its weights, its tokenizer.
//!
//! Both the coordinator (tokenizer, chat template, hash) and the workers (weights) need it; it knows neither the
//! network protocol nor any tensor operation. [`ModelSource`] says where a model lies, [`BaseModel`] is what one finds
//! there. Every byte read here comes from outside and is checked before it is believed.
// `mapped` alone may hold unsafe code, because a memory map cannot be made without it.
#![deny(unsafe_code)]

mod architecture;
mod base_model;
mod chat_template;
mod encoding;
mod error;
mod files;
mod gguf;
mod hash;
mod hub;
mod mapped;
mod safetensors;
mod source;
mod stop;
mod tokenizer;
mod weights;

pub use architecture::{Activation, Architecture, Projection, RotaryScaling};
pub use base_model::BaseModel;
pub use chat_template::ChatTemplate;
pub use error::Error;
pub use hub::Hub;
pub use source::ModelSource;
