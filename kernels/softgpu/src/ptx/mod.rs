//! PTX text to syntax tree: tokens ([`lexer`]), tree ([`syntax`]), grammar ([`parser`]).

pub(crate) mod lexer;
pub(crate) mod parser;
pub(crate) mod syntax;
