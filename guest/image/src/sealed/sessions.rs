//! Records of sessions: each is a request of a client who has verified this CVM. They are authenticated and decrypted here, on vCPU 0,
//! in order of arrival; a call then goes its usual way, and its answer is sealed by the worker that ran it.

use super::{authorities, logs, packages};
use crate::arch::clock;
use crate::calls::{self, Bytes, Order};
use crate::normal::NormalCell;
use alloc::string::String;
use alloc::vec::Vec;
use nacre_abi::call::{HEAD_BYTES, RequestHead};
use nacre_session::command::{Command, Install, Invoke, Logs, ModuleKind, Remove};
use nacre_session::reply::{Installed, Refusal, Reply};
use nacre_session::{ClaimsHash, CvmSessions, Draft, Request, RequestBody, Responder, SessionId};

/// All sessions of this CVM.
static SESSIONS: NormalCell<CvmSessions> = NormalCell::new(CvmSessions::new());

/// Variables that a caller can give.
const MAX_VARIABLES: usize = 256;
/// Bytes of all arguments and variables that a caller gives.
const MAX_TEXTS_BYTES: usize = 1 << 20;

/// Bytes of a sealed answer beside its outputs at most: its text, its head, and what padding adds to short ones.
const ANSWER_OVERHEAD: u64 = 2 << 20;

/// An offer that its evidence has made known, with the code that is installed as of `generation`.
pub fn offer(draft: Draft, claims: ClaimsHash, generation: u64) {
    SESSIONS.with(|sessions| sessions.publish(draft, claims, generation));
}

/// A record came as the input of call number `call`, whose limits are the host's.
pub fn record(call: u32, head: RequestHead, request: Bytes) {
    let mut record = request.into_inner();
    let before = HEAD_BYTES + head.texts_bytes as usize;
    if before > record.len() {
        return calls::answer_record(call, &[]);
    }
    // In its place: memory for a copy may not be there.
    record.drain(..before);
    match SESSIONS.with(|sessions| sessions.accept(record)) {
        Err(rejected) => calls::answer_record(call, &rejected.encode()),
        Ok(Request { body, responder, code }) => serve(call, head, &body, responder, code),
    }
}

/// `code` is the generation of the code that the client has evidence of.
fn serve(call: u32, head: RequestHead, body: &RequestBody, responder: Responder, code: u64) {
    let reply = match body.command() {
        Err(_) => Reply::refused(Refusal::Malformed),
        // Nothing reaches code that the client has not judged.
        Ok(Command::Invoke(_)) if code != packages::generation() => Reply::refused(Refusal::CodeChanged),
        Ok(Command::Invoke(invoke)) => match order(call, head, &invoke) {
            Ok(order) => return calls::spawn(order, Some(responder)),
            Err(reason) => Reply::refused(reason),
        },
        Ok(command) => match authorise(body) {
            Err(reason) => Reply::refused(reason),
            Ok(()) => match command {
                Command::Install(install) => return self::install(call, &install, responder),
                Command::Remove(remove) => self::remove(&remove, body.session()),
                Command::Logs(logs) => return self::logs(call, &logs, responder),
                _ => return status(call, responder),
            },
        },
    };
    calls::answer_record(call, &responder.seal(&reply));
}

/// Whether the command comes from the owner or a broker. An open CVM obeys nobody, for it must not hold secrets.
fn authorise(body: &RequestBody) -> Result<(), Refusal> {
    let allowed = authorities().ok_or(Refusal::OpenMode)?;
    body.authority(&allowed).map(|_| ())
}

/// A sealed call as the host would have asked for it: its texts and its input in one request.
fn order(call: u32, head: RequestHead, invoke: &Invoke<'_>) -> Result<Order, Refusal> {
    let action = packages::action(invoke.action)?;
    let given = |index: usize| {
        let name = invoke.env[index].0;
        let own = action.env.iter().any(|(own, _)| own == name);
        let twice = invoke.env[..index].iter().any(|(before, _)| *before == name);
        own || twice || name.is_empty() || name.contains(['=', '\0'])
    };
    // What the owner has set, no caller replaces.
    if invoke.env.len() > MAX_VARIABLES || (0..invoke.env.len()).any(given) {
        return Err(Refusal::BadVariable);
    }
    let given = invoke.args.iter().map(|text| text.len());
    let given = given.chain(invoke.env.iter().map(|(name, value)| name.len() + value.len()));
    if given.sum::<usize>() > MAX_TEXTS_BYTES {
        return Err(Refusal::OutOfMemory);
    }
    let variables: Vec<String> = action
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(invoke.env.iter().copied())
        .map(|(name, value)| alloc::format!("{name}={value}"))
        .collect();
    let args = core::iter::once(invoke.action).chain(invoke.args.iter().copied());
    let texts = args.chain(variables.iter().map(String::as_str));
    let texts_bytes = texts.clone().map(|text| 4 + text.len()).sum::<usize>();
    let limits = invoke.limits;
    let head = RequestHead {
        wall_limit_ns: head.wall_limit_ns.min(limits.wall_ns),
        cpu_limit_ns: head.cpu_limit_ns.min(limits.cpu_ns),
        memory_limit_bytes: head.memory_limit_bytes.min(limits.memory_bytes),
        // Both outputs and what is around them must fit what the host takes as one.
        max_output_bytes: (head.max_output_bytes.saturating_sub(ANSWER_OVERHEAD) / 2)
            .min(limits.output_bytes),
        priority: head.priority.max(limits.priority as u32).min(2),
        args: 1 + invoke.args.len() as u32,
        vars: variables.len() as u32,
        texts_bytes: u32::try_from(texts_bytes).map_err(|_| Refusal::OutOfMemory)?,
        stdin_bytes: invoke.stdin.len() as u64,
    };
    let mut request = Bytes::new(head.request_bytes() as usize).ok_or(Refusal::OutOfMemory)?;
    let (encoded, rest) = request.0.split_at_mut(HEAD_BYTES);
    encoded.copy_from_slice(&head.encode());
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        rest[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    for text in texts {
        put(&(text.len() as u32).to_le_bytes());
        put(text.as_bytes());
    }
    put(invoke.stdin);
    Order::new(call, action.module, request, clock::monotonic_ns()).ok_or(Refusal::Malformed)
}

fn install(call: u32, install: &Install<'_>, responder: Responder) {
    let session = responder.session();
    packages::install(call, install, session, move |reply| {
        calls::answer_record(call, &responder.seal(reply));
    });
}

/// A request of this session has changed the set of code. On vCPU 0.
pub fn code_changed(session: SessionId, before: u64, now: u64) {
    SESSIONS.with(|sessions| sessions.code_changed(session, before, now));
}

fn remove(remove: &Remove<'_>, session: SessionId) -> Reply<'static> {
    match packages::remove(remove.name, remove.version, session) {
        Ok(()) => Reply::Removed { version: remove.version },
        Err((reason, value)) => Reply::Refused { reason, value, detail: "" },
    }
}

fn status(call: u32, responder: Responder) {
    let record = packages::with_installed(|installed| {
        let list = installed.iter().map(|(name, one)| Installed {
            name,
            version: one.version,
            kind: one.kind,
            code: &one.code_sha256,
        });
        responder.seal(&Reply::Status(list.collect()))
    });
    calls::answer_record(call, &record);
}

fn logs(call: u32, order: &Logs<'_>, responder: Responder) {
    let kind = packages::with_installed(|installed| installed.get(order.name).map(|one| one.kind));
    let record = match kind {
        None => responder.seal(&Reply::refused(Refusal::UnknownAction)),
        Some(ModuleKind::Action) => responder.seal(&Reply::refused(Refusal::NotAService)),
        Some(_) => {
            let (first, bytes) = logs::read(order.name, order.from).unwrap_or_default();
            responder.seal(&Reply::Logs { first, bytes: &bytes })
        }
    };
    calls::answer_record(call, &record);
}
