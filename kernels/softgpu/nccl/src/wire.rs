//! What ranks and hub say to each other. Little-endian numbers; payloads are preceded by their length.

use std::io::{self, Error, ErrorKind, Read, Write};

use crate::abi::{DataType, Failure, Reduction};

/// First bytes of an id and of a connection.
pub(crate) const MAGIC: [u8; 8] = *b"softnccl";
/// A payload longer than this is noise, not a request.
const LONGEST: u64 = 1 << 34;

/// The secret that an id carries.
pub(crate) type Secret = [u8; 16];

/// What a rank says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) secret: Secret,
    pub(crate) ranks: u32,
    pub(crate) rank: u32,
    /// Id of the rank's process.
    pub(crate) process: u32,
}

/// What a collective does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    AllReduce(Reduction),
    /// From that rank to all.
    Broadcast(u32),
    AllGather,
}

/// A collective, as each rank must ask for it alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) data: DataType,
    /// Elements that this rank brings.
    pub(crate) count: u64,
}

/// What a rank asks of the hub.
#[derive(Debug)]
pub(crate) enum Request {
    Collective(Call, Vec<u8>),
    /// The rank is done and leaves.
    Farewell,
}

/// The hub's answer: bytes, or a failure and why.
pub(crate) type Answer = Result<Vec<u8>, (Failure, String)>;

fn number<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn word(stream: &mut impl Read) -> io::Result<u32> {
    number(stream).map(u32::from_le_bytes)
}

fn payload(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u64::from_le_bytes(number(stream)?);
    if length > LONGEST {
        return Err(noise("payload too long"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write_payload(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
    stream.write_all(bytes)
}

fn noise(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Hello {
    pub(crate) fn write(self, stream: &mut impl Write) -> io::Result<()> {
        let numbers = [self.ranks, self.rank, self.process].map(u32::to_le_bytes).concat();
        stream.write_all(&[&MAGIC[..], &self.secret, &numbers].concat())
    }

    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Self> {
        if number(stream)? != MAGIC {
            return Err(noise("no greeting"));
        }
        Ok(Self { secret: number(stream)?, ranks: word(stream)?, rank: word(stream)?, process: word(stream)? })
    }
}

impl Request {
    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let (kind, detail, call, bytes) = match self {
            Self::Farewell => return stream.write_all(&0_u32.to_le_bytes()),
            Self::Collective(call, bytes) => match call.kind {
                Kind::AllReduce(reduction) => (1_u32, reduction_code(reduction), call, bytes),
                Kind::Broadcast(root) => (2, root, call, bytes),
                Kind::AllGather => (3, 0, call, bytes),
            },
        };
        let words = [kind, detail, call.data as u32].map(u32::to_le_bytes).concat();
        stream.write_all(&[&words[..], &call.count.to_le_bytes()].concat())?;
        write_payload(stream, bytes)
    }

    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Self> {
        let kind = word(stream)?;
        if kind == 0 {
            return Ok(Self::Farewell);
        }
        let (detail, data) = (word(stream)?, word(stream)?);
        let kind = match kind {
            1 => Kind::AllReduce(Reduction::from_code(detail).ok_or_else(|| noise("unknown reduction"))?),
            2 => Kind::Broadcast(detail),
            3 => Kind::AllGather,
            _ => return Err(noise("unknown collective")),
        };
        let data = DataType::from_code(data).ok_or_else(|| noise("unknown data type"))?;
        let count = u64::from_le_bytes(number(stream)?);
        Ok(Self::Collective(Call { kind, data, count }, payload(stream)?))
    }
}

fn reduction_code(reduction: Reduction) -> u32 {
    match reduction {
        Reduction::Sum => 0,
        Reduction::Max => 2,
        Reduction::Min => 3,
    }
}

pub(crate) fn write_answer(stream: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let (code, bytes) = match answer {
        Ok(bytes) => (0, bytes.as_slice()),
        Err((failure, message)) => (*failure as u32, message.as_bytes()),
    };
    stream.write_all(&code.to_le_bytes())?;
    write_payload(stream, bytes)
}

pub(crate) fn read_answer(stream: &mut impl Read) -> io::Result<Answer> {
    let code = word(stream)?;
    let bytes = payload(stream)?;
    Ok(match code {
        0 => Ok(bytes),
        _ => Err((Failure::from_code(code), String::from_utf8_lossy(&bytes).into_owned())),
    })
}
