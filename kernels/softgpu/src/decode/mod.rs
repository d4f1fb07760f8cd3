//! Syntax tree to [`Program`]: resolves names to slots, inlines device functions, refuses what is not known.

mod control;
mod convert;
mod float;
mod integer;
mod memory;
mod modifiers;
mod operand;
mod scope;
mod tensor;
pub(crate) mod window;

use crate::{
    ir::{Inst, Op, Program, Slot},
    module::LoadError,
    ptx::syntax::{Function, Instruction, Item, Operand, Source, Space, Variable},
};
use modifiers::Modifiers;
use scope::{Binding, Scopes};
use std::collections::HashMap;

pub(crate) type Result<T> = std::result::Result<T, LoadError>;

/// Calls within calls that are inlined before recursion is suspected.
const MAX_DEPTH: usize = 16;

/// What decoding a kernel yields.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) program: Program,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
}

/// Decodes the body of `kernel`. `globals` maps names of global and constant variables to their index.
pub(crate) fn decode(source: &Source, kernel: &Function, globals: &HashMap<String, usize>) -> Result<Decoded> {
    let mut decoder = Decoder::new(source, globals);
    decoder.bind_kernel_params(&kernel.params);
    decoder.body(kernel, 0)?;
    decoder.emit(Op::Exit);
    decoder.finish()
}

struct Decoder<'a> {
    source: &'a Source,
    globals: &'a HashMap<String, usize>,
    scopes: Scopes,
    program: Program,
    constants32: HashMap<crate::ir::Constant, Slot>,
    constants64: HashMap<crate::ir::Constant, Slot>,
    /// Position of each label; `u32::MAX` until it is met.
    labels: Vec<u32>,
    shared: HashMap<String, usize>,
    shared_bytes: usize,
    local_bytes: usize,
    /// Where `ret` goes within an inlined function.
    return_label: Option<u32>,
    line: u32,
    guard: Option<(Slot, bool)>,
}

impl<'a> Decoder<'a> {
    fn new(source: &'a Source, globals: &'a HashMap<String, usize>) -> Self {
        let program = Program { predicates: 2, true_predicate: 0, carry: 1, ..Program::default() };
        Self {
            source,
            globals,
            scopes: Scopes::default(),
            program,
            constants32: HashMap::new(),
            constants64: HashMap::new(),
            labels: Vec::new(),
            shared: HashMap::new(),
            shared_bytes: 0,
            local_bytes: 0,
            return_label: None,
            line: 0,
            guard: None,
        }
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(LoadError { line: self.line, message: message.into() })
    }

    fn emit(&mut self, op: Op) {
        self.program.code.push(Inst { op, guard: self.guard, line: self.line });
    }

    fn bind_kernel_params(&mut self, params: &[Variable]) {
        let (offsets, _) = layout(params);
        for (param, offset) in params.iter().zip(offsets) {
            self.scopes.bind(&param.name, Binding::Param(offset));
        }
    }

    fn body(&mut self, function: &'a Function, depth: usize) -> Result<()> {
        self.line = function.line;
        let Some(items) = &function.body else {
            return self.error(format!("function {} has no body, and this device does not provide it", function.name));
        };
        self.declare_labels(items);
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Open => {
                    self.scopes.open();
                    self.declare_labels(&items[at + 1..]);
                }
                Item::Close => self.scopes.close(),
                Item::Registers { bits, names } => self.declare_registers(*bits, names),
                Item::Variable(variable) => self.declare_variable(variable)?,
                Item::Label(name) => self.place_label(name)?,
                Item::BranchTargets { .. } => {}
                Item::Instruction(instruction) => self.instruction(instruction, items, depth)?,
            }
        }
        Ok(())
    }

    /// Labels may be used before they are met, so a scope's labels are declared when it opens.
    fn declare_labels(&mut self, items: &[Item]) {
        let mut depth = 0;
        for item in items {
            match item {
                Item::Open => depth += 1,
                Item::Close if depth == 0 => return,
                Item::Close => depth -= 1,
                Item::Label(name) if depth == 0 => {
                    let label = self.new_label();
                    self.scopes.bind(name, Binding::Label(label));
                }
                _ => {}
            }
        }
    }

    fn new_label(&mut self) -> u32 {
        self.labels.push(u32::MAX);
        self.labels.len() as u32 - 1
    }

    fn place_label(&mut self, name: &str) -> Result<()> {
        match self.scopes.find(name) {
            Some(&Binding::Label(label)) => {
                self.labels[label as usize] = self.program.code.len() as u32;
                Ok(())
            }
            _ => self.error(format!("label {name} was not declared")),
        }
    }

    fn declare_registers(&mut self, bits: u32, names: &[String]) {
        for name in names {
            let slot = self.new_slot(bits);
            self.scopes.bind(name, Binding::Register { bits, slot });
        }
    }

    fn new_slot(&mut self, bits: u32) -> Slot {
        let file = match bits {
            1 => &mut self.program.predicates,
            64 => &mut self.program.slots64,
            _ => &mut self.program.slots32,
        };
        *file += 1;
        *file as Slot - 1
    }

    fn declare_variable(&mut self, variable: &Variable) -> Result<()> {
        self.line = variable.line;
        let binding = match (variable.space, variable.size) {
            (Space::Shared, Some(size)) => {
                let offset = self.shared_bytes.next_multiple_of(variable.align);
                self.shared_bytes = offset + size;
                Binding::Shared(offset)
            }
            (Space::Local | Space::Param, Some(size)) => {
                let offset = self.local_bytes.next_multiple_of(variable.align);
                self.local_bytes = offset + size;
                Binding::Local(offset)
            }
            _ => return self.error(format!("variable {} cannot be declared in a body", variable.name)),
        };
        self.scopes.bind(&variable.name, binding);
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction, items: &[Item], depth: usize) -> Result<()> {
        self.line = instruction.line;
        self.guard = match &instruction.guard {
            Some((name, negated)) => Some((self.predicate_register(name)?, *negated)),
            None => None,
        };
        let operands = instruction.operands.as_slice();
        let mut modifiers = Modifiers::new(instruction);
        match instruction.opcode[0].as_str() {
            "bra" => self.branch(&mut modifiers, operands)?,
            "brx" => self.branch_table(&mut modifiers, operands, items)?,
            "call" => self.call(&mut modifiers, operands, depth)?,
            "ret" | "exit" => self.leave(&mut modifiers, instruction.opcode[0] == "exit"),
            _ => {
                let known = self.data(&mut modifiers, operands)?
                    || self.memory(&mut modifiers, operands)?
                    || self.collective(&mut modifiers, operands)?
                    || self.tensor(&mut modifiers, operands)?;
                if !known {
                    return self.error(format!("unknown instruction {}", instruction.opcode.join(".")));
                }
            }
        }
        modifiers.finish()
    }

    fn data(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        Ok(self.float(modifiers, operands)?
            || self.integer(modifiers, operands)?
            || self.moves(modifiers, operands)?
            || self.conversion(modifiers, operands)?)
    }

    fn call(&mut self, modifiers: &mut Modifiers, operands: &[Operand], depth: usize) -> Result<()> {
        modifiers.take("uni");
        let (results, name, arguments) = match operands {
            [Operand::Name(name)] => (&[][..], name, &[][..]),
            [Operand::Name(name), Operand::List(arguments)] => (&[][..], name, arguments.as_slice()),
            [Operand::List(results), Operand::Name(name)] => (results.as_slice(), name, &[][..]),
            [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
                (results.as_slice(), name, arguments.as_slice())
            }
            _ => return self.error("an indirect call cannot be inlined"),
        };
        if name == "__assertfail" {
            self.emit(Op::Assert);
            return Ok(());
        }
        let source = self.source;
        let defined = source.functions.iter().find(|f| f.name == *name && f.body.is_some());
        let Some(callee) = defined.filter(|f| !f.is_kernel) else {
            return self.error(format!("call of {name}, which has no body here"));
        };
        if self.guard.is_some() || depth >= MAX_DEPTH {
            return self.error(format!("call of {name}: guarded and recursive calls are not supported"));
        }
        if results.len() != callee.results.len() || arguments.len() != callee.params.len() {
            return self.error(format!("call of {name} with the wrong number of arguments"));
        }
        let mut bindings = Vec::new();
        let formals = callee.results.iter().chain(&callee.params);
        for (formal, actual) in formals.zip(results.iter().chain(arguments)) {
            match self.scopes.find(actual) {
                Some(&Binding::Local(offset)) => bindings.push((&formal.name, Binding::Local(offset))),
                _ => return self.error(format!("argument {actual} is not a .param variable")),
            }
        }
        self.inline(callee, bindings, depth)
    }

    fn inline(&mut self, callee: &'a Function, bindings: Vec<(&String, Binding)>, depth: usize) -> Result<()> {
        let callers = std::mem::take(&mut self.scopes);
        for (name, binding) in bindings {
            self.scopes.bind(name, binding);
        }
        let end = self.new_label();
        let outer = self.return_label.replace(end);
        self.body(callee, depth + 1)?;
        self.labels[end as usize] = self.program.code.len() as u32;
        self.return_label = outer;
        self.scopes = callers;
        self.guard = None;
        Ok(())
    }

    /// Puts positions in place of labels and lays dynamic shared memory behind the static.
    fn finish(mut self) -> Result<Decoded> {
        let labels = std::mem::take(&mut self.labels);
        for inst in &mut self.program.code {
            match &mut inst.op {
                Op::Branch { target } => *target = labels[*target as usize],
                Op::BranchTable { targets, .. } => targets.iter_mut().for_each(|t| *t = labels[*t as usize]),
                _ => {}
            }
        }
        self.program.constants32 = self.constants32.iter().map(|(&constant, &slot)| (slot, constant)).collect();
        self.program.constants64 = self.constants64.iter().map(|(&constant, &slot)| (slot, constant)).collect();
        Ok(Decoded { program: self.program, shared_bytes: self.shared_bytes, local_bytes: self.local_bytes })
    }
}

/// Offsets of `params` in their buffer, and its size.
pub(crate) fn layout(params: &[Variable]) -> (Vec<usize>, usize) {
    let mut end = 0_usize;
    let offsets = params.iter().map(|param| {
        let offset = end.next_multiple_of(param.align);
        end = offset + param.size.unwrap_or(0);
        offset
    });
    (offsets.collect(), end)
}
