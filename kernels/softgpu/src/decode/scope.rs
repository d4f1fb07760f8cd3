//! Names in nested braces.

use crate::ir::Slot;
use std::collections::HashMap;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    Register {
        bits: u32,
        slot: Slot,
    },
    Label(u32),
    /// Offset in the parameter buffer.
    Param(usize),
    /// Offset in shared memory.
    Shared(usize),
    /// Offset in local memory.
    Local(usize),
}

/// The scopes that are open, innermost last.
#[derive(Debug)]
pub(crate) struct Scopes(Vec<HashMap<String, Binding>>);

impl Default for Scopes {
    fn default() -> Self {
        Self(vec![HashMap::new()])
    }
}

impl Scopes {
    pub(crate) fn open(&mut self) {
        self.0.push(HashMap::new());
    }

    pub(crate) fn close(&mut self) {
        self.0.pop();
    }

    pub(crate) fn bind(&mut self, name: &str, binding: Binding) {
        if let Some(innermost) = self.0.last_mut() {
            innermost.insert(name.to_owned(), binding);
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Binding> {
        self.0.iter().rev().find_map(|scope| scope.get(name))
    }
}
