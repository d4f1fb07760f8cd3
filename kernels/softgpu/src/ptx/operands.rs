//! The grammar of instructions: guards, opcodes, operands, literals.

use super::{
    lexer::Kind,
    parser::{MAX_SIZE, Parser, Result},
    syntax::{Instruction, Number, Operand},
};

impl Parser<'_> {
    pub(super) fn instruction(&mut self) -> Result<Instruction> {
        let guard = if self.accept("@") {
            let negated = self.accept("!");
            Some((self.name()?, negated))
        } else {
            None
        };
        let line = self.line();
        let opcode = self.name()?.split('.').map(str::to_owned).collect();
        let mut operands = Vec::new();
        while !self.accept(";") {
            operands.push(self.operand()?);
            if self.peek() != Some(";") {
                self.expect(",")?;
            }
        }
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand> {
        if self.accept("!") {
            return Ok(Operand::Not(self.name()?));
        }
        if self.accept("{") {
            let mut parts = Vec::new();
            while !self.accept("}") {
                parts.push(self.operand()?);
                self.accept(",");
            }
            return Ok(Operand::Vector(parts));
        }
        if self.accept("(") {
            let mut names = Vec::new();
            while !self.accept(")") {
                names.push(self.name()?);
                self.accept(",");
            }
            return Ok(Operand::List(names));
        }
        if self.accept("[") {
            let address = self.address()?;
            self.expect("]")?;
            return Ok(address);
        }
        if self.is_number() {
            return Ok(Operand::Number(self.number()?));
        }
        let name = self.name()?;
        if self.accept("|") {
            return Ok(Operand::Pair(name, self.name()?));
        }
        if matches!(self.peek(), Some("+" | "-")) {
            self.accept("+");
            return Ok(Operand::Address { base: Some(name), offset: self.integer()? });
        }
        Ok(Operand::Name(name))
    }

    fn address(&mut self) -> Result<Operand> {
        if self.is_number() {
            return Ok(Operand::Address { base: None, offset: self.integer()? });
        }
        let base = Some(self.name()?);
        let has_offset = self.accept("+") || self.peek() == Some("-");
        let offset = if has_offset { self.integer()? } else { 0 };
        Ok(Operand::Address { base, offset })
    }

    fn is_number(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Number || token.text == "-")
    }

    fn integer(&mut self) -> Result<i64> {
        match self.number()? {
            Number::Int(value) => Ok(value),
            _ => self.error("expected an integer"),
        }
    }

    pub(super) fn count(&mut self) -> Result<usize> {
        let value = usize::try_from(self.integer()?).ok().filter(|&count| count <= MAX_SIZE);
        value.map_or_else(|| self.error("expected a size"), Ok)
    }

    pub(super) fn number(&mut self) -> Result<Number> {
        let negative = self.accept("-");
        let text = self.next()?;
        let Some(number) = literal(text) else { return self.error(format!("{text:?} is not a number")) };
        Ok(match number {
            Number::Int(value) if negative => Number::Int(value.wrapping_neg()),
            Number::F32(bits) if negative => Number::F32(bits ^ 1 << 31),
            Number::F64(bits) if negative => Number::F64(bits ^ 1 << 63),
            number => number,
        })
    }
}

/// `12`, `12U`, `0x1F`, `017`, `0b101`, `0f3F800000` (the bits of an f32), `0d…` (of an f64), `1.5`.
fn literal(text: &str) -> Option<Number> {
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(Number::F32);
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return u64::from_str_radix(hex, 16).ok().map(Number::F64);
    }
    let plain = lower.trim_end_matches('u');
    let integer = if let Some(hex) = plain.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(binary) = plain.strip_prefix("0b") {
        u64::from_str_radix(binary, 2).ok()
    } else if plain.len() > 1 && plain.starts_with('0') && !plain.contains('.') {
        u64::from_str_radix(&plain[1..], 8).ok()
    } else {
        plain.parse().ok()
    };
    match integer {
        Some(value) => Some(Number::Int(value as i64)),
        None => lower.parse::<f64>().ok().map(|value| Number::F64(value.to_bits())),
    }
}
