//! PTX text to syntax tree: tokens ([`lexer`]), tree ([`syntax`]), grammar ([`parser`], [`operands`]).

pub(crate) mod lexer;
mod operands;
pub(crate) mod parser;
pub(crate) mod syntax;
