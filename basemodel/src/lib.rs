//! Reading a base model from disk: where it lies, what it is, its weights, its tokenizer.
//!
//! Both the coordinator (tokenizer, chat template, hash) and the workers (weights) need it; it knows neither the
//! network protocol nor any tensor operation.
#![deny(unsafe_code)]

mod architecture;
mod base_model;
mod chat_template;
mod error;
mod source;

pub use architecture::{Activation, Architecture, Projection, RotaryScaling};
pub use base_model::BaseModel;
pub use chat_template::ChatTemplate;
pub use error::Error;
pub use source::ModelSource;
