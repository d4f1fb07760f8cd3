//! The grammar of PTX: recursive descent over tokens.

use super::{
    lexer::{Kind, Token, tokens},
    syntax::{Function, Instruction, Item, Number, Operand, Source, Space, Variable},
};
use crate::module::LoadError;

type Result<T> = std::result::Result<T, LoadError>;

/// Largest variable or register bank that is believed.
const MAX_SIZE: usize = 1 << 30;

/// Parses a module.
pub(crate) fn parse(text: &str) -> Result<Source> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut source = Source::default();
    while parser.peek().is_some() {
        parser.file_item(&mut source)?;
    }
    Ok(source)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|token| token.text)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(LoadError { line: self.line(), message: message.into() })
    }

    fn next(&mut self) -> Result<&'a str> {
        match self.tokens.get(self.at) {
            Some(token) => {
                self.at += 1;
                Ok(token.text)
            }
            None => self.error("the text ends early"),
        }
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        if self.accept(text) {
            return Ok(());
        }
        self.error(format!("expected {text:?}, found {:?}", self.peek().unwrap_or("the end")))
    }

    fn skip_past(&mut self, text: &str) -> Result<()> {
        while self.next()? != text {}
        Ok(())
    }

    fn name(&mut self) -> Result<String> {
        match self.tokens.get(self.at) {
            Some(token) if token.kind == Kind::Word => {
                self.at += 1;
                Ok(token.text.to_owned())
            }
            other => self.error(format!("expected a name, found {:?}", other.map_or("the end", |t| t.text))),
        }
    }

    fn file_item(&mut self, source: &mut Source) -> Result<()> {
        match self.next()? {
            ".version" | ".address_size" => {
                self.next()?;
            }
            ".target" => {
                self.next()?;
                while self.accept(",") {
                    self.next()?;
                }
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => {
                let function = self.function(true)?;
                source.functions.push(function);
            }
            ".func" => {
                let function = self.function(false)?;
                source.functions.push(function);
            }
            ".file" | ".pragma" => self.skip_line(),
            ".section" => {
                self.skip_past("{")?;
                self.skip_past("}")?;
            }
            space @ (".global" | ".const" | ".shared") => {
                let variable = self.variable(space)?;
                source.variables.push(variable);
            }
            other => {
                self.at -= 1;
                return self.error(format!("unknown directive {other:?}"));
            }
        }
        Ok(())
    }

    /// `.file` and `.loc` end with their line, not with a semicolon.
    fn skip_line(&mut self) {
        let line = self.tokens.get(self.at.saturating_sub(1)).map(|token| token.line);
        while self.tokens.get(self.at).map(|token| token.line) == line {
            self.at += 1;
        }
    }

    fn function(&mut self, is_kernel: bool) -> Result<Function> {
        let line = self.line();
        let results = if !is_kernel && self.peek() == Some("(") { self.params()? } else { Vec::new() };
        let name = self.name()?;
        let params = if self.peek() == Some("(") { self.params()? } else { Vec::new() };
        let mut function = Function { line, name, is_kernel, results, params, max_threads: None, body: None };
        loop {
            match self.next()? {
                ".maxntid" | ".reqntid" => {
                    let mut threads = self.count()?;
                    while self.accept(",") {
                        threads = threads.saturating_mul(self.count()?);
                    }
                    function.max_threads = Some(threads);
                }
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {
                    self.count()?;
                }
                ".noreturn" => {}
                ".pragma" => self.skip_past(";")?,
                ";" => return Ok(function),
                "{" => {
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                other => {
                    self.at -= 1;
                    return self.error(format!("unknown directive {other:?} of a function"));
                }
            }
        }
    }

    fn params(&mut self) -> Result<Vec<Variable>> {
        self.expect("(")?;
        let mut params = Vec::new();
        while !self.accept(")") {
            self.expect(".param")?;
            params.push(self.declarator(Space::Param)?);
            if self.peek() != Some(")") {
                self.expect(",")?;
            }
        }
        Ok(params)
    }

    fn body(&mut self) -> Result<Vec<Item>> {
        let (mut items, mut depth) = (Vec::new(), 1);
        while depth > 0 {
            match self.next()? {
                "{" => {
                    depth += 1;
                    items.push(Item::Open);
                }
                "}" => {
                    depth -= 1;
                    items.push(Item::Close);
                }
                ";" => {}
                ".reg" => items.push(self.registers()?),
                ".pragma" => self.skip_past(";")?,
                ".loc" => self.skip_line(),
                space @ (".local" | ".shared" | ".param" | ".global" | ".const") => {
                    items.push(Item::Variable(self.variable(space)?));
                }
                word if self.peek() == Some(":") => {
                    self.at += 1;
                    items.push(self.label(word)?);
                }
                _ => {
                    self.at -= 1;
                    items.push(Item::Instruction(self.instruction()?));
                }
            }
        }
        items.pop();
        Ok(items)
    }

    fn label(&mut self, label: &str) -> Result<Item> {
        let label = label.to_owned();
        if !self.accept(".branchtargets") {
            return Ok(Item::Label(label));
        }
        let mut targets = vec![self.name()?];
        while self.accept(",") {
            targets.push(self.name()?);
        }
        self.expect(";")?;
        Ok(Item::BranchTargets { label, targets })
    }

    fn registers(&mut self) -> Result<Item> {
        let kind = self.next()?;
        let bits = match kind {
            ".pred" => 1,
            _ => 8 * self.type_bytes(kind)? as u32,
        };
        let mut names = Vec::new();
        loop {
            let name = self.name()?;
            if self.accept("<") {
                let count = self.count()?;
                self.expect(">")?;
                names.extend((0..count).map(|i| format!("{name}{i}")));
            } else {
                names.push(name);
            }
            if !self.accept(",") {
                self.expect(";")?;
                return Ok(Item::Registers { bits, names });
            }
        }
    }

    fn type_bytes(&self, kind: &str) -> Result<usize> {
        Ok(match kind {
            ".b8" | ".u8" | ".s8" => 1,
            ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
            ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
            ".b64" | ".u64" | ".s64" | ".f64" => 8,
            _ => return self.error(format!("unknown type {kind:?}")),
        })
    }

    fn variable(&mut self, space: &str) -> Result<Variable> {
        let space = match space {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Param,
        };
        let variable = self.declarator(space)?;
        self.expect(";")?;
        Ok(variable)
    }

    /// `.align 4 .b8 name[16] = {…}`, all but type and name optional.
    fn declarator(&mut self, space: Space) -> Result<Variable> {
        let line = self.line();
        let (mut align, mut element) = (None, None);
        while self.peek().is_some_and(|word| word.starts_with('.')) {
            match self.next()? {
                ".align" => align = Some(self.count()?),
                ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".attribute" => {}
                kind => element = Some(self.type_bytes(kind)?),
            }
        }
        let Some(element) = element else { return self.error("a variable without a type") };
        let name = self.name()?;
        let (mut size, mut is_open) = (element, false);
        while self.accept("[") {
            if self.accept("]") {
                is_open = true;
            } else {
                size = size.saturating_mul(self.count()?);
                self.expect("]")?;
            }
        }
        let initial = if self.accept("=") { self.initializer(element)? } else { Vec::new() };
        if is_open && !initial.is_empty() {
            size = initial.len();
            is_open = false;
        }
        if size > MAX_SIZE || initial.len() > size {
            return self.error(format!("variable {name} is too large"));
        }
        let align = align.unwrap_or(element);
        if !align.is_power_of_two() || align > 256 {
            return self.error(format!("variable {name} has alignment {align}"));
        }
        Ok(Variable { line, space, name, align, size: (!is_open).then_some(size), initial })
    }

    fn initializer(&mut self, element: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut depth = 0;
        loop {
            if self.accept("{") {
                depth += 1;
                continue;
            }
            if !self.accept("}") {
                let value = match self.number()? {
                    Number::Int(value) => value as u64,
                    Number::F32(bits) => u64::from(bits),
                    Number::F64(bits) => bits,
                };
                bytes.extend_from_slice(&value.to_le_bytes()[..element]);
            } else {
                depth -= 1;
            }
            if depth == 0 {
                return Ok(bytes);
            }
            self.accept(",");
        }
    }

    fn instruction(&mut self) -> Result<Instruction> {
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

    fn count(&mut self) -> Result<usize> {
        let value = usize::try_from(self.integer()?).ok().filter(|&count| count <= MAX_SIZE);
        value.map_or_else(|| self.error("expected a size"), Ok)
    }

    fn number(&mut self) -> Result<Number> {
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
