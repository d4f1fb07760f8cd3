//! The dotted parts of an opcode. Each is taken by whoever understands it; one that is left over is an error.

use super::Result;
use crate::{
    ir::{Rounding, Ty},
    module::LoadError,
    ptx::syntax::Instruction,
};

pub(crate) struct Modifiers<'a> {
    line: u32,
    opcode: &'a [String],
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(crate) fn new(instruction: &'a Instruction) -> Self {
        let left = instruction.opcode.iter().skip(1).map(String::as_str).collect();
        Self { line: instruction.line, opcode: &instruction.opcode, left }
    }

    /// The first part of the opcode.
    pub(crate) fn base(&self) -> &'a str {
        self.opcode.first().map_or("", String::as_str)
    }

    pub(crate) fn error<T>(&self, message: &str) -> Result<T> {
        Err(LoadError { line: self.line, message: format!("{}: {message}", self.opcode.join(".")) })
    }

    /// Takes `word` if it is there.
    pub(crate) fn take(&mut self, word: &str) -> bool {
        let at = self.left.iter().position(|&left| left == word);
        at.map(|at| self.left.remove(at)).is_some()
    }

    /// Whether `word` is there.
    pub(crate) fn peek(&self, word: &str) -> bool {
        self.left.contains(&word)
    }

    /// Whether one of the types that are left is a floating-point type.
    pub(crate) fn has_float(&self) -> bool {
        self.left.iter().filter_map(|word| Ty::parse(word)).any(Ty::is_float)
    }

    /// Takes whichever of `words` is there.
    pub(crate) fn take_any(&mut self, words: &[&str]) -> Option<&'a str> {
        let at = self.left.iter().position(|left| words.contains(left))?;
        Some(self.left.remove(at))
    }

    /// Takes the first part that `f` understands.
    pub(crate) fn take_with<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, found) = self.left.iter().enumerate().find_map(|(at, word)| Some((at, f(word)?)))?;
        self.left.remove(at);
        Some(found)
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Result<Ty> {
        match self.take_with(Ty::parse) {
            Some(ty) => Ok(ty),
            None => self.error("a type that this device does not know"),
        }
    }

    /// Takes the rounding of a floating-point result, if one is given.
    pub(crate) fn rounding(&mut self) -> Option<Rounding> {
        self.take_with(|word| {
            Some(match word {
                "rn" => Rounding::NearestEven,
                "rna" => Rounding::NearestAway,
                "rz" => Rounding::Zero,
                "rm" => Rounding::Down,
                "rp" => Rounding::Up,
                _ => return None,
            })
        })
    }

    /// Takes the rounding to an integer, if one is given.
    pub(crate) fn integer_rounding(&mut self) -> Option<Rounding> {
        self.take_with(|word| {
            Some(match word {
                "rni" => Rounding::NearestEven,
                "rzi" => Rounding::Zero,
                "rmi" => Rounding::Down,
                "rpi" => Rounding::Up,
                _ => return None,
            })
        })
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(word) => self.error(&format!("this device does not know the modifier .{word}")),
        }
    }
}
