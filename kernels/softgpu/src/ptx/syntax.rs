//! The syntax tree of a PTX module. Names are not resolved here: that is the decoder's work.

/// All of a `.ptx` file that matters for running it.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Variables at file scope (`.global`, `.const`, `.extern .shared`).
    pub(crate) variables: Vec<Variable>,
    /// Kernels and device functions with a body, and external declarations without.
    pub(crate) functions: Vec<Function>,
}

/// State spaces of variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A variable in memory.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) line: u32,
    pub(crate) space: Space,
    pub(crate) name: String,
    pub(crate) align: usize,
    /// Bytes; `None` for `name[]`, whose size the launch gives.
    pub(crate) size: Option<usize>,
    /// First bytes of the content.
    pub(crate) initial: Vec<u8>,
}

/// `.entry` or `.func`.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) line: u32,
    pub(crate) name: String,
    pub(crate) is_kernel: bool,
    pub(crate) results: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    /// From `.maxntid` or `.reqntid`.
    pub(crate) max_threads: Option<usize>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Item>>,
}

/// A line of a function body.
#[derive(Debug)]
pub(crate) enum Item {
    Open,
    Close,
    /// `.reg`: width in bits (1 for predicates) and names.
    Registers {
        bits: u32,
        names: Vec<String>,
    },
    Variable(Variable),
    Label(String),
    /// `label: .branchtargets a, b;`
    BranchTargets {
        label: String,
        targets: Vec<String>,
    },
    Instruction(Instruction),
}

/// An instruction, its opcode split at the dots.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    /// Predicate register and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// `fma.rn.f32` is `["fma", "rn", "f32"]`.
    pub(crate) opcode: Vec<String>,
    pub(crate) operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// A register, variable, label or function; `_` too.
    Name(String),
    /// `!%p1`
    Not(String),
    Number(Number),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(String, String),
    /// `[base+offset]`, or `base+offset` outside brackets.
    Address {
        base: Option<String>,
        offset: i64,
    },
    /// `(a, b)` of a call.
    List(Vec<String>),
}

/// A literal. Integers keep their 64 bits; floats keep the pattern that was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Int(i64),
    F32(u32),
    F64(u64),
}
