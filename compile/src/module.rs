//! Is this something Nacre can run? Reads a program's bytes and says in one sentence what is wrong with them.
//!
//! [`Module::parse`] looks at the structure only (sections, imports, exports: microseconds to milliseconds); whether
//! each function is valid is the compiler's business, and [`explain_invalid`] words what it found.

use std::borrow::Cow;

use nacre_abi::spawn;
use nacre_wasi::PREVIEW1;
use wasmparser::{
    Chunk, CompositeInnerType, ExternalKind, FuncType, Parser, Payload, TypeRef, ValType, Validator,
    WasmFeatures,
};

use crate::size::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, format_size};

/// The module name of WASI preview 1.
pub const WASI_MODULE: &str = "wasi_snapshot_preview1";

const WASM_MAGIC: &[u8] = b"\0asm";

/// Why a program can not be run, with the remedy after "; ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// Neither Wasm nor its text form.
    #[error("not a WebAssembly module{}; compile the program for wasm32-wasip1", looks_like(.0))]
    NotWasm(Option<&'static str>),
    /// Text that starts like a module but is none.
    #[error("invalid WebAssembly text at line {line}, column {column}: {message}; correct the text")]
    Text {
        /// 1-based.
        line: usize,
        /// 1-based.
        column: usize,
        /// What the text parser says.
        message: String,
    },
    /// The file ends before the module does.
    #[error("truncated, it ends early at byte {0}; copy or build the file again")]
    Truncated(usize),
    /// A component of the component model.
    #[error(
        "is a component (WASI preview 2), Nacre runs core modules (WASI preview 1); \
         build it for wasm32-wasip1 (rustc, cargo) or wasm32-wasi (clang)"
    )]
    Component,
    /// A binary format version that does not exist.
    #[error("has WebAssembly version {0}, Nacre reads version 1; build it with a current toolchain")]
    Version(u16),
    /// Uses proposals Nacre does not support.
    #[error("uses {}, which Nacre does not support; {}", proposals(*.0), without(*.0))]
    Unsupported(WasmFeatures),
    /// Not valid by the Wasm specification.
    #[error("invalid WebAssembly at byte {offset}: {message}; build the file again")]
    Invalid {
        /// Where in the binary.
        offset: usize,
        /// What the validator says.
        message: String,
    },
    /// An import that is no function of WASI preview 1 or of module `nacre`.
    #[error("imports {module}.{name}, which nobody provides; {}", import_remedy(module))]
    Import {
        /// The module part of the import.
        module: String,
        /// The name part of the import.
        name: String,
    },
    /// An import of a WASI function with other parameters or results than it has.
    #[error(
        "imports {WASI_MODULE}.{0} with other parameters than WASI preview 1 gives it; \
         build it with a current toolchain"
    )]
    ImportType(&'static str),
    /// An import of a function of module `nacre` with other parameters or results than it has.
    #[error("imports nacre.{0} with other parameters than Nacre gives it; use the nacre.h of this version")]
    SpawnType(&'static str),
    /// No `_start`, so nothing to run.
    #[error(
        "has no `_start` function{}; build it as a command, with a main function",
        if *.reactor { " (it is a reactor: a library with `_initialize`)" } else { "" }
    )]
    NoStart {
        /// It exports `_initialize`.
        reactor: bool,
    },
    /// `_start` is something else than a function without parameters and results.
    #[error("its `_start` is not a function without parameters and results; build it as a command")]
    StartType,
    /// The program starts with more memory than the CVM gets.
    #[error("starts with {} of memory, the CVM has {}; {}",
        format_size(*.need), format_size(*.have), memory_remedy(*.need))]
    Memory {
        /// Bytes the module's memories have at the start.
        need: u64,
        /// Bytes of the CVM.
        have: u64,
    },
}

/// Whether a program must be runnable by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It must export `_start`, as everything `nacre run` takes.
    Command,
    /// It may be a library whose exports somebody calls.
    Any,
}

/// A structurally sound core module whose imports are all provided.
#[derive(Debug, Clone)]
pub struct Module<'a> {
    /// The binary form.
    pub wasm: Cow<'a, [u8]>,
    /// It exports a `_start` that takes and returns nothing.
    pub is_command: bool,
    /// Sum of the initial sizes of its memories in bytes, saturating.
    pub min_memory_bytes: u64,
}

/// What the scan over the sections collects.
#[derive(Default)]
struct Scan {
    /// By type index; `None` for what is no function type.
    types: Vec<Option<FuncType>>,
    /// Type index of each function, imported ones first.
    functions: Vec<u32>,
    start: Option<(ExternalKind, u32)>,
    reactor: bool,
    min_memory_bytes: u64,
}

impl<'a> Module<'a> {
    /// Reads a module in binary or text form.
    ///
    /// # Errors
    /// Every [`ModuleError`] that shows without validating function bodies.
    pub fn parse(bytes: &'a [u8], entry: Entry) -> Result<Self, ModuleError> {
        let wasm = binary_form(bytes)?;
        let scan = Scan::run(&wasm)?;
        let is_command = match scan.start {
            Some((ExternalKind::Func, function)) if scan.is_plain(function) => true,
            Some(_) => return Err(ModuleError::StartType),
            None if entry == Entry::Command => return Err(ModuleError::NoStart { reactor: scan.reactor }),
            None => false,
        };
        Ok(Self { is_command, min_memory_bytes: scan.min_memory_bytes, wasm })
    }
}

/// The module's binary form: the bytes themselves, or the translation of a text.
fn binary_form(bytes: &[u8]) -> Result<Cow<'_, [u8]>, ModuleError> {
    if bytes.starts_with(WASM_MAGIC) {
        return Ok(Cow::Borrowed(bytes));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if looks_like_text_form(text) => text,
        _ if !bytes.is_empty() && WASM_MAGIC.starts_with(bytes) => {
            return Err(ModuleError::Truncated(bytes.len()));
        }
        _ => return Err(ModuleError::NotWasm(known_format(bytes))),
    };
    wat::parse_str(text).map(Cow::Owned).map_err(|error| {
        // wat words its errors over several lines: message, then "--> <anon>:LINE:COLUMN", then the source line.
        let full = error.to_string();
        let mut position = full.split("<anon>:").nth(1).unwrap_or_default().splitn(3, [':', '\n', ' ']);
        let mut number = || position.next().and_then(|n| n.trim().parse().ok()).unwrap_or(1);
        let (line, column) = (number(), number());
        let message = full.lines().next().unwrap_or_default().replace("; ", ", ");
        ModuleError::Text { line, column, message }
    })
}

/// Starts with "(module" or "(component", or with the comments that may stand before.
fn looks_like_text_form(text: &str) -> bool {
    let mut rest = text.trim_start();
    while rest.starts_with(";;") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after).trim_start();
    }
    rest.starts_with('(')
}

/// Formats people pass by mistake.
fn known_format(bytes: &[u8]) -> Option<&'static str> {
    let formats: [(&[u8], &str); 8] = [
        (b"\x7fELF", "an ELF program or object"),
        (b"#!", "a script"),
        (b"BC\xc0\xde", "LLVM bitcode"),
        (b"!<arch>", "a static library"),
        (b"\x1f\x8b", "gzip data"),
        (b"PK\x03\x04", "a zip archive"),
        (b"MZ", "a Windows program"),
        (b"", "an empty file"),
    ];
    let empty = bytes.is_empty();
    formats
        .iter()
        .find(|(magic, _)| magic.is_empty() == empty && bytes.starts_with(magic))
        .map(|(_, name)| *name)
}

impl Scan {
    fn run(wasm: &[u8]) -> Result<Self, ModuleError> {
        let truncated = ModuleError::Truncated(wasm.len());
        check_preamble(wasm)?;
        let mut scan = Self::default();
        let mut parser = Parser::new(0);
        let mut at = 0;
        loop {
            let Some(rest) = wasm.get(at..) else { return Err(truncated) };
            // Told that more may come, the parser asks for it where the file was cut off. What it misses at the very
            // end, such as the bodies of declared functions, was cut off too.
            let at_end = rest.is_empty();
            let payload = match parser.parse(rest, at_end) {
                Ok(Chunk::Parsed { consumed, payload }) => {
                    at += consumed;
                    payload
                }
                Ok(Chunk::NeedMoreData(_)) => return Err(truncated),
                Err(_) if at_end => return Err(truncated),
                Err(error) => return Err(invalid(&error)),
            };
            match payload {
                Payload::CodeSectionStart { size, .. } => {
                    // Bodies are skipped: their bytes only have to be there.
                    parser.skip_section();
                    at = at.saturating_add(size as usize);
                }
                Payload::End(_) => return Ok(scan),
                payload => scan.section(payload)?,
            }
        }
    }

    fn section(&mut self, payload: Payload<'_>) -> Result<(), ModuleError> {
        let bad = |error: wasmparser::Error| invalid(&error);
        match payload {
            Payload::TypeSection(types) => {
                for group in types {
                    let types = group.map_err(bad)?.into_types();
                    self.types.extend(types.map(|ty| match ty.composite_type.inner {
                        CompositeInnerType::Func(function) => Some(function),
                        _ => None,
                    }));
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(bad)?;
                    self.import(import.module, import.name, import.ty)?;
                }
            }
            Payload::FunctionSection(functions) => {
                for function in functions {
                    self.functions.push(function.map_err(bad)?);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let memory = memory.map_err(bad)?;
                    if memory.shared {
                        return Err(ModuleError::Unsupported(WasmFeatures::THREADS));
                    }
                    let page_bytes =
                        1u64.checked_shl(memory.page_size_log2.unwrap_or(16)).unwrap_or(u64::MAX);
                    let bytes = memory.initial.saturating_mul(page_bytes);
                    self.min_memory_bytes = self.min_memory_bytes.saturating_add(bytes);
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.map_err(bad)?;
                    match export.name {
                        "_start" => self.start = Some((export.kind, export.index)),
                        "_initialize" => self.reactor = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, module: &str, name: &str, ty: TypeRef) -> Result<(), ModuleError> {
        if matches!(ty, TypeRef::Memory(memory) if memory.shared) {
            return Err(ModuleError::Unsupported(WasmFeatures::THREADS));
        }
        let functions: &[(&'static str, &[&str], &str)] = match module {
            WASI_MODULE => &PREVIEW1,
            spawn::MODULE => &spawn::FUNCTIONS,
            _ => &[],
        };
        let provided = functions.iter().find(|(function, ..)| *function == name);
        let (Some((function, params, result)), TypeRef::Func(index)) = (provided, ty) else {
            return Err(ModuleError::Import { module: module.to_owned(), name: name.to_owned() });
        };
        self.functions.push(index);
        match self.types.get(index as usize) {
            Some(Some(ty)) if has_type(ty, params, result) => Ok(()),
            _ if module == spawn::MODULE => Err(ModuleError::SpawnType(function)),
            _ => Err(ModuleError::ImportType(function)),
        }
    }

    /// A function without parameters and results. An index out of range is left to the validator.
    fn is_plain(&self, function: u32) -> bool {
        let index = self.functions.get(function as usize);
        let ty = index.and_then(|&index| self.types.get(index as usize)).and_then(Option::as_ref);
        ty.is_some_and(|ty| ty.params().is_empty() && ty.results().is_empty())
    }
}

/// Whether a function type is the one `PREVIEW1` gives in its words.
fn has_type(ty: &FuncType, params: &[&str], result: &str) -> bool {
    let core_type = |word: &&str| if *word == "u64" { ValType::I64 } else { ValType::I32 };
    let results: &[ValType] = if result == "never" { &[] } else { &[ValType::I32] };
    ty.results() == results && params.iter().map(core_type).eq(ty.params().iter().copied())
}

/// Magic, version and layer, the first eight bytes of every binary.
fn check_preamble(wasm: &[u8]) -> Result<(), ModuleError> {
    let Some(&[_, _, _, _, v0, v1, layer0, layer1]) = wasm.first_chunk::<8>() else {
        return Err(ModuleError::Truncated(wasm.len()));
    };
    match (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([layer0, layer1])) {
        (1, 0) => Ok(()),
        (_, 1) => Err(ModuleError::Component),
        (version, _) => Err(ModuleError::Version(version)),
    }
}

/// Why the compiler refused `wasm`: the unsupported proposals it uses, or where it breaks the specification. `None`
/// when the module is valid and supported, so that the fault is elsewhere.
#[must_use]
pub fn explain_invalid(wasm: &[u8]) -> Option<ModuleError> {
    let supported = nacre_engine::wasm_features();
    let mut missing = WasmFeatures::empty();
    loop {
        let error = match Validator::new_with_features(supported | missing).validate_all(wasm) {
            Ok(_) if missing.is_empty() => return None,
            Ok(_) => return Some(ModuleError::Unsupported(missing)),
            Err(error) => error,
        };
        match error.missing_wasm_feature() {
            Some(feature) if !missing.contains(feature) => missing |= feature,
            // It uses a proposal that is off and is broken besides: the proposal comes first.
            _ if !missing.is_empty() => return Some(ModuleError::Unsupported(missing)),
            _ => return Some(invalid(&error)),
        }
    }
}

fn invalid(error: &wasmparser::Error) -> ModuleError {
    ModuleError::Invalid { offset: error.offset(), message: error.message().replace("; ", ", ") }
}

fn looks_like(format: &Option<&'static str>) -> String {
    format.map(|name| format!(", it looks like {name}")).unwrap_or_default()
}

fn proposals(features: WasmFeatures) -> String {
    let names: Vec<_> =
        features.iter_names().map(|(name, _)| name.to_ascii_lowercase().replace('_', "-")).collect();
    match names.as_slice() {
        [one] => format!("the Wasm proposal {one}"),
        many => format!("the Wasm proposals {}", many.join(", ")),
    }
}

fn without(features: WasmFeatures) -> &'static str {
    if features.intersects(WasmFeatures::THREADS) {
        "build it without threads (wasm32-wasip1, no -pthread)"
    } else if features.intersects(WasmFeatures::LEGACY_EXCEPTIONS) {
        "build it with the standard exceptions (clang: -mllvm -wasm-use-legacy-eh=false)"
    } else if features.intersects(WasmFeatures::GC) {
        "build it for a target without garbage collection"
    } else {
        "build it without that proposal"
    }
}

/// Room for the runtime, the code and growth comes with the next power of two.
fn memory_remedy(need: u64) -> String {
    match need.checked_add(1).and_then(u64::checked_next_power_of_two) {
        Some(size) if size <= MAX_MEMORY_BYTES => {
            format!("use --memory {}", format_size(size.max(MIN_MEMORY_BYTES)))
        }
        _ => {
            format!("a CVM has at most {}: build it with less initial memory", format_size(MAX_MEMORY_BYTES))
        }
    }
}

fn import_remedy(module: &str) -> &'static str {
    match module {
        WASI_MODULE => "WASI preview 1 has no such function: build it with a current toolchain",
        spawn::MODULE => "this version of Nacre has no such function: docs/spawn.md lists those it has",
        "wasi_unstable" => "that is WASI preview 0: build it for wasm32-wasip1",
        "wbg" | "__wbindgen_placeholder__" | "__wbindgen_externref_xform__" => {
            "it is built for a browser (wasm-bindgen): build it for wasm32-wasip1"
        }
        "wasi" => "it uses WASI threads: build it for wasm32-wasip1 without threads",
        "env" | "a" => {
            "it is built for another host (such as Emscripten or a browser) or lacks a library: \
             link everything and build it for wasm32-wasip1"
        }
        _ => "programs may import the functions of wasi_snapshot_preview1 and nacre only",
    }
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
