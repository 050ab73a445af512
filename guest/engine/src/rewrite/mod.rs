//! Rewrites a Wasm module before it is compiled, so that it passes fewer epoch checks: the same program otherwise.
//!
//! Compiled code looks at the epoch at every function entry and every `loop` header, which costs a tiny function or a tight
//! loop more than its own work. Two passes over each function: [`inline`] puts tiny functions where they are called,
//! then [`unroll`] lets one check serve several iterations of a small loop.
//!
//! Only the code section changes; all other sections and all indices stay as they are. Offsets into the code section in
//! custom sections (DWARF, branch hints) do not follow. Here are the walk over the module and the encoding; nothing here
//! trusts the module to be valid.

mod inline;
mod unroll;

use std::borrow::Cow;
use std::ops::Range;

use wasmparser::{BinaryReader, BinaryReaderError, Encoding, FunctionBody, Parser, Payload};

use inline::{Leaves, Signatures};

/// Larger functions are left alone: compilers take more than linear time for them.
const MAX_FUNCTION_BYTES: usize = 256 << 10;
/// Each pass may let a function grow by its own size and this many bytes, which is enough for a function of one tiny loop.
const FLAT_GROWTH_BYTES: usize = 4096;

/// Single-byte opcodes, numbered by the Wasm core specification, section 5.4 "Instructions".
mod opcode {
    pub const BLOCK: u8 = 0x02;
    pub const LOOP: u8 = 0x03;
    pub const IF: u8 = 0x04;
    pub const ELSE: u8 = 0x05;
    pub const END: u8 = 0x0b;
    pub const BR: u8 = 0x0c;
    pub const BR_TABLE: u8 = 0x0e;
    pub const CALL: u8 = 0x10;
    pub const LOCAL_SET: u8 = 0x21;
    /// A block type: neither parameters nor results.
    pub const EMPTY: u8 = 0x40;
    /// The id of the code section.
    pub const CODE_SECTION: u8 = 10;
}

/// Why a module could not be read. A valid module never fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// A component, whose modules are not looked at.
    #[error("is a component; pass a core module")]
    Component,
    /// Not a well-formed module.
    #[error("malformed WebAssembly at byte {offset}: {message}; build the file again")]
    Malformed {
        /// Where in the binary.
        offset: usize,
        /// What the parser says.
        message: String,
    },
}

impl RewriteError {
    fn malformed(offset: usize, message: &str) -> Self {
        Self::Malformed { offset, message: message.replace("; ", ", ") }
    }
}

impl From<BinaryReaderError> for RewriteError {
    fn from(error: BinaryReaderError) -> Self {
        Self::malformed(error.offset(), error.message())
    }
}

/// How often each pass changed something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Changes {
    calls_inlined: usize,
    loops_unrolled: usize,
}

/// Returns `wasm` with its tiny functions inlined and its small innermost loops unrolled; byte for byte the same if it has none.
///
/// A valid module stays valid and does the same. A module that parses without being valid may come out as another
/// invalid one.
///
/// # Errors
/// [`RewriteError`], never for a valid core module.
pub fn rewrite(wasm: &[u8]) -> Result<Vec<u8>, RewriteError> {
    Ok(rewrite_and_count(wasm)?.0)
}

fn rewrite_and_count(wasm: &[u8]) -> Result<(Vec<u8>, Changes), RewriteError> {
    let module = Sections::read(wasm)?;
    let Some(code) = module.code else { return Ok((wasm.to_vec(), Changes::default())) };
    let leaves = Leaves::find(&module.signatures, &module.bodies)?;
    let mut bodies = Vec::new();
    let mut changes = Changes::default();
    write_u32(&mut bodies, module.count);
    for (index, body) in module.bodies.iter().enumerate() {
        let function = rewrite_function(&module.signatures, &leaves, index, body, &mut changes)?;
        write_len(&mut bodies, function.len(), body.range().start)?;
        bodies.extend_from_slice(&function);
    }
    if changes == Changes::default() {
        return Ok((wasm.to_vec(), changes));
    }
    let mut out = Vec::with_capacity(wasm.len().saturating_add(bodies.len()));
    out.extend_from_slice(slice(wasm, 0..code.start, 0)?);
    out.push(opcode::CODE_SECTION);
    write_len(&mut out, bodies.len(), code.start)?;
    out.extend_from_slice(&bodies);
    out.extend_from_slice(slice(wasm, code.end..wasm.len(), 0)?);
    Ok((out, changes))
}

/// Both passes over the `index`th function the module defines.
fn rewrite_function<'a>(
    signatures: &Signatures,
    leaves: &Leaves<'_>,
    index: usize,
    body: &FunctionBody<'a>,
    changes: &mut Changes,
) -> Result<Cow<'a, [u8]>, RewriteError> {
    let mut bytes = Cow::Borrowed(body.as_bytes());
    if bytes.len() > MAX_FUNCTION_BYTES {
        return Ok(bytes);
    }
    let offset = body.range().start;
    if let Some((inlined, calls)) = inline::inline_calls(signatures, leaves, index, body)? {
        bytes = Cow::Owned(inlined);
        changes.calls_inlined += calls;
    }
    let unrolled = unroll::unroll_loops(&FunctionBody::new(BinaryReader::new(&bytes, offset)))?;
    if let Some((unrolled, loops)) = unrolled {
        bytes = Cow::Owned(unrolled);
        changes.loops_unrolled += loops;
    }
    Ok(bytes)
}

/// What the passes need of a module.
#[derive(Default)]
struct Sections<'a> {
    signatures: Signatures,
    /// The whole code section with its header.
    code: Option<Range<usize>>,
    /// How many functions the code section says it has.
    count: u32,
    bodies: Vec<FunctionBody<'a>>,
}

impl<'a> Sections<'a> {
    fn read(wasm: &'a [u8]) -> Result<Self, RewriteError> {
        let mut module = Self::default();
        let mut end_of_previous = 0;
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload?;
            match &payload {
                Payload::Version { encoding: Encoding::Component, .. } => {
                    return Err(RewriteError::Component);
                }
                Payload::Version { range, .. } => end_of_previous = range.end,
                Payload::TypeSection(types) => module.signatures.read_types(types.clone())?,
                Payload::ImportSection(imports) => module.signatures.read_imports(imports.clone())?,
                Payload::FunctionSection(functions) => {
                    module.signatures.read_functions(functions.clone())?;
                }
                Payload::CodeSectionStart { range, .. } if module.code.is_some() => {
                    return Err(RewriteError::malformed(range.start, "a second code section"));
                }
                Payload::CodeSectionStart { count, range, .. } => {
                    module.count = *count;
                    module.code = Some(end_of_previous..range.end);
                }
                Payload::CodeSectionEntry(body) => module.bodies.push(body.clone()),
                _ => {}
            }
            if let Some((_, range)) = payload.as_section() {
                end_of_previous = range.end;
            }
        }
        Ok(module)
    }
}

/// 0xff, no opcode at all, past the end.
fn opcode_at(bytes: &[u8], position: usize) -> u8 {
    bytes.get(position).copied().unwrap_or(0xff)
}

/// Ranges come from the parser's positions; one that is none would be its fault or a misuse of it.
fn slice(bytes: &[u8], range: Range<usize>, base: usize) -> Result<&[u8], RewriteError> {
    let offset = base.saturating_add(range.start);
    bytes.get(range).ok_or_else(|| RewriteError::malformed(offset, "positions out of order"))
}

/// Writes a length; `offset` is where in the input an error would be reported.
fn write_len(out: &mut Vec<u8>, len: usize, offset: usize) -> Result<(), RewriteError> {
    let len = u32::try_from(len).map_err(|_| RewriteError::malformed(offset, "4 GiB or more of code"))?;
    write_u32(out, len);
    Ok(())
}

/// Unsigned LEB128.
fn write_u32(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
