//! Sealed code: packages as the host brings them in, and what was installed from them. A package is ciphertext until an order that the
//! owner or a broker has signed names it and gives its key; then its code is believed only if a compiler of the manifest has signed
//! for it, and only then does the engine look at it.

use super::{logs, sessions, with_manifest};
use crate::children::Loaded;
use crate::normal::NormalCell;
use crate::program::{Code, Loading, Owner, Program};
use crate::task::{self, Begin, Spec};
use crate::{calls, sockets, wasm};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::attest::PACKAGE_ID_BYTES;
use nacre_abi::message::{ExitKind, NO_PROGRAM};
use nacre_attest::code::{CodeError, CodeStatement, Kind};
use nacre_attest::package::{self, Header};
use nacre_session::command::{Install, ModuleKind};
use nacre_session::reply::{Refusal, Reply};
use nacre_session::{SessionId, Versions};

/// Packages that the host has brought in, by its number for the module.
static PACKAGES: NormalCell<BTreeMap<u32, Package>> = NormalCell::new(BTreeMap::new());
/// What was installed, by name.
static INSTALLED: NormalCell<BTreeMap<String, InstalledCode>> = NormalCell::new(BTreeMap::new());
/// Rises whenever another set of code is installed.
static GENERATION: AtomicU64 = AtomicU64::new(1);
/// The newest version of each name, so that none comes back.
static VERSIONS: NormalCell<Versions> = NormalCell::new(Versions::new());

struct Package {
    header: Header,
    bytes: Arc<Code>,
}

/// Variables of an action or service: secrets and configuration.
pub type Env = Arc<Vec<(String, String)>>;

/// Something installed.
pub struct InstalledCode {
    /// Its version.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// SHA-256 of its precompiled code.
    pub code_sha256: [u8; 32],
    /// The package it came in.
    package: [u8; PACKAGE_ID_BYTES],
    env: Env,
    form: Form,
}

/// An action is loaded once; a service's code is loaded at each start.
enum Form {
    Action(Arc<Loaded>),
    Service(Arc<Code>),
}

/// An action that can be called.
pub struct Action {
    /// Its code.
    pub module: Arc<Loaded>,
    /// Its variables.
    pub env: Env,
}

/// A package is complete.
///
/// # Errors
/// What is wrong with it.
pub fn arrived(module: u32, bytes: Code) -> Result<(), String> {
    let header = Header::parse(bytes.bytes()).map_err(|error| format!("package: {error}"))?;
    if header.body_bytes() + package::HEADER_BYTES as u64 != bytes.bytes().len() as u64 {
        return Err("package: it is not as long as it says".into());
    }
    PACKAGES.with(|packages| packages.insert(module, Package { header, bytes: Arc::new(bytes) }));
    Ok(())
}

/// The host takes a package away. What was installed from it stays.
pub fn forget(module: u32) {
    let old = PACKAGES.with(|packages| packages.remove(&module));
    drop(old);
}

/// SHA-256 of all code that is installed or still runs, for evidence: a host may keep a service running that was replaced.
pub fn code() -> Vec<[u8; 32]> {
    let installed =
        with_installed(|installed| -> Vec<_> { installed.values().map(|one| one.code_sha256).collect() });
    let all: BTreeSet<_> = installed.into_iter().chain(logs::running()).collect();
    all.into_iter().collect()
}

/// Whether anything was brought in or installed.
pub fn any() -> bool {
    !PACKAGES.with(|packages| packages.is_empty()) || with_installed(|installed| !installed.is_empty())
}

/// A number for what [`code`] says: another one once that has changed.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Looks at what is installed.
pub fn with_installed<R>(look: impl FnOnce(&BTreeMap<String, InstalledCode>) -> R) -> R {
    INSTALLED.with(|installed| look(installed))
}

/// The action with this name.
///
/// # Errors
/// `UnknownAction`, `NotAnAction`.
pub fn action(name: &str) -> Result<Action, Refusal> {
    with_installed(|installed| {
        let one = installed.get(name).ok_or(Refusal::UnknownAction)?;
        match &one.form {
            Form::Action(module) => Ok(Action { module: module.clone(), env: one.env.clone() }),
            Form::Service(_) => Err(Refusal::NotAnAction),
        }
    })
}

/// Makes program `id` of the service that came in the package named `package`. Its name is its only argument; the host provides nothing.
///
/// # Errors
/// How the program ends at once, and why.
pub fn start_service(id: u32, package: &[u8]) -> Result<(), (ExitKind, &'static str)> {
    let found = with_installed(|installed| {
        let (name, one) = installed.iter().find(|(_, one)| one.package == package)?;
        let Form::Service(code) = &one.form else { return None };
        Some((name.clone(), one.env.clone(), code.clone(), one.kind, one.code_sha256))
    });
    let (name, env, code, kind, code_sha256) =
        found.ok_or((ExitKind::Error, "not-installed: no service was installed from this package yet"))?;
    let no_memory = (ExitKind::OutOfMemory, "no memory for the service");
    let code = Code::copy_of(code.bytes()).ok_or(no_memory)?;
    let loading = Loading::new(code).ok_or(no_memory)?;
    logs::begin(id, &name, code_sha256);
    let loading = Loading { args: alloc::vec![name], env: env.to_vec(), ..loading };
    Program::create(id, loading, Owner::Tenant).map_err(|_| no_memory)?;
    if let Some(program) = Program::find(id) {
        program.stdin_end();
        if kind == ModuleKind::TlsService {
            sockets::provide_tls(&program);
        }
    }
    Ok(())
}

/// Forgets what is installed under a name, by a request of this session; calls that run go on. If nothing is, an order to install that version
/// that is still on its way will be refused.
///
/// # Errors
/// `OtherVersion` with the one that is there; those of [`Versions::removed`].
pub fn remove(name: &str, version: u64, session: SessionId) -> Result<(), (Refusal, u64)> {
    let removed = INSTALLED.with(|installed| {
        if let Some(one) = installed.get(name).filter(|one| one.version != version) {
            return Err((Refusal::OtherVersion, one.version));
        }
        VERSIONS.with(|versions| versions.removed(name, version))?;
        Ok(installed.remove(name))
    })?;
    if removed.is_some() {
        logs::forget(name);
        changed(session);
    }
    // Outside of the table: the end of a module's code takes the engine's locks.
    drop(removed);
    Ok(())
}

/// Another set of code is installed, by a request of this session.
fn changed(session: SessionId) {
    let before = GENERATION.fetch_add(1, Ordering::Relaxed);
    sessions::code_changed(session, before, before + 1);
}

/// What is to be installed, as it goes to the task that does it.
struct Job {
    name: String,
    version: u64,
    kind: ModuleKind,
    content: [u8; 32],
    key: Key,
    env: Env,
    header: Header,
    bytes: Arc<Code>,
}

/// A package's key, wiped when it is dropped.
struct Key([u8; 32]);

impl Drop for Key {
    fn drop(&mut self) {
        self.0.fill(0);
        core::hint::black_box(&mut self.0);
    }
}

/// Why nothing was installed.
struct Refused {
    reason: Refusal,
    value: u64,
    detail: String,
}

impl Refused {
    fn reply(&self) -> Reply<'_> {
        Reply::Refused { reason: self.reason, value: self.value, detail: &self.detail }
    }
}

impl From<Refusal> for Refused {
    fn from(reason: Refusal) -> Refused {
        Refused { reason, value: 0, detail: String::new() }
    }
}

/// Installs a package by an order of this session, whose authority was checked, for call number `call`. `done` gets the reply, from a task.
pub fn install(
    call: u32,
    install: &Install<'_>,
    session: SessionId,
    done: impl FnOnce(&Reply<'_>) + Send + 'static,
) {
    let version = install.version;
    let job = match job(install) {
        Ok(job) => job,
        Err(refused) => return done(&refused.reply()),
    };
    // Decrypting and hashing takes a millisecond per megabyte or so: not on vCPU 0, if there is another one.
    let entry = Box::new(move |begin| {
        let result = match begin {
            Begin::Now => run(job, session),
            _ => Err(Refusal::OutOfMemory.into()),
        };
        match &result {
            Ok(code) => done(&Reply::Installed { version, code }),
            Err(refused) => done(&refused.reply()),
        }
    });
    let failed = move || calls::refuse(call, ExitKind::OutOfMemory, "no memory to install the package");
    let spec = Spec { on_death: Some(Box::new(failed)), ..Spec::helper(NO_PROGRAM) };
    match task::create(spec, entry) {
        Ok(task) => task::start(&task),
        Err(_) => failed(),
    }
}

fn job(install: &Install<'_>) -> Result<Job, Refused> {
    let Install { package, key, name, version, kind, ref env } = *install;
    let allowed = VERSIONS.with(|versions| versions.check(name, version, package));
    allowed.map_err(|(reason, value)| Refused { reason, value, detail: String::new() })?;
    let found = PACKAGES.with(|packages| {
        let found = packages.values().find(|one| &one.header.body_sha256 == package)?;
        Some((found.header, found.bytes.clone()))
    });
    let (header, bytes) = found.ok_or(Refusal::PackageMissing)?;
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Ok(Job {
        name: name.into(),
        version,
        kind,
        content: *package,
        key: Key(*key),
        env: Arc::new(env),
        header,
        bytes,
    })
}

/// The task of an installation; returns the hash of the code.
fn run(job: Job, session: SessionId) -> Result<[u8; 32], Refused> {
    let (statement, code) = open(&job)?;
    let form = match job.kind {
        ModuleKind::Action => {
            let loaded = wasm::load_module(code).map_err(|outcome| Refused {
                detail: outcome.into_error().1,
                ..Refusal::CodeIncompatible.into()
            })?;
            Form::Action(Arc::new(loaded))
        }
        ModuleKind::Service | ModuleKind::TlsService => Form::Service(Arc::new(code)),
    };
    let code_sha256 = statement.cwasm_sha256;
    let Job { name, version, kind, content, env, header, .. } = job;
    let one = InstalledCode { version, kind, code_sha256, package: header.id, env, form };
    let old = task::on_normal(|| {
        // Once more: another order may have been faster.
        let newest = VERSIONS.with(|versions| versions.installed(&name, version, &content));
        newest.map_err(|(reason, value)| Refused { reason, value, detail: String::new() })?;
        let old = INSTALLED.with(|installed| installed.insert(name, one));
        changed(session);
        Ok::<_, Refused>(old)
    })?;
    drop(old);
    Ok(code_sha256)
}

/// Decrypts a package into memory of its own, checks who has signed for the code, and moves the code to where it can run.
fn open(job: &Job) -> Result<(CodeStatement, Code), Refused> {
    let refused = |reason: Refusal, detail: &dyn core::fmt::Display| Refused {
        reason,
        value: 0,
        detail: detail.to_string(),
    };
    let sealed = job.bytes.bytes();
    let mut whole = Vec::new();
    whole.try_reserve_exact(sealed.len()).map_err(|_| Refusal::OutOfMemory)?;
    whole.extend_from_slice(sealed);
    let (signed, range) = package::open_in_place(&job.key.0, &mut whole)
        .map_err(|error| refused(Refusal::PackageDamaged, &error))?;
    // The table is vCPU 0's, the check need not be.
    let manifest =
        task::on_normal(|| with_manifest(|manifest| manifest.map(|(_, manifest)| manifest.clone())));
    let manifest = manifest.ok_or(Refusal::OpenMode)?;
    let statement = signed.verify(&manifest).map_err(|error| refused(Refusal::CodeRejected, &error))?;
    let kind = match statement.kind {
        Kind::Action => ModuleKind::Action,
        Kind::Service { tls: false } => ModuleKind::Service,
        Kind::Service { tls: true } => ModuleKind::TlsService,
    };
    if (statement.name.as_str(), statement.version, kind) != (&job.name, job.version, job.kind) {
        return Err(refused(
            Refusal::CodeRejected,
            &"the signed statement is about another name, version or kind",
        ));
    }
    let machine_code = &whole[range];
    statement.check_code(machine_code).map_err(|error: CodeError| refused(Refusal::CodeRejected, &error))?;
    let code = Code::copy_of(machine_code).ok_or(Refusal::OutOfMemory)?;
    Ok((statement, code))
}
