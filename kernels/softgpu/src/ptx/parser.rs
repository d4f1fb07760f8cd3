//! The grammar of PTX: recursive descent over tokens.

use super::{
    lexer::{Kind, Token, tokens},
    syntax::{Function, Item, Number, Source, Space, Variable},
};
use crate::module::LoadError;

pub(super) type Result<T> = std::result::Result<T, LoadError>;

/// Largest variable or register bank that is believed.
pub(super) const MAX_SIZE: usize = 1 << 30;

/// Parses a module.
pub(crate) fn parse(text: &str) -> Result<Source> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut source = Source::default();
    while parser.peek().is_some() {
        parser.file_item(&mut source)?;
    }
    Ok(source)
}

pub(super) struct Parser<'a> {
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|token| token.text)
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(LoadError { line: self.line(), message: message.into() })
    }

    pub(super) fn next(&mut self) -> Result<&'a str> {
        match self.tokens.get(self.at) {
            Some(token) => {
                self.at += 1;
                Ok(token.text)
            }
            None => self.error("the text ends early"),
        }
    }

    pub(super) fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<()> {
        if self.accept(text) {
            return Ok(());
        }
        self.error(format!("expected {text:?}, found {:?}", self.peek().unwrap_or("the end")))
    }

    fn skip_past(&mut self, text: &str) -> Result<()> {
        while self.next()? != text {}
        Ok(())
    }

    pub(super) fn name(&mut self) -> Result<String> {
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
}
