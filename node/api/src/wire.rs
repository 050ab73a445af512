//! OpenWhisk's JSON: bodies of requests as types, records as bodies. Pure.

use crate::BadRequest;
use crate::body::{self, Record};
use crate::limits::{ActionLimits, TenantLimits};
use crate::names::{EntityName, TenantName};
use crate::records::{Action, Activation, KIND, KeyValue, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;

/// What every module begins with.
const WASM_MAGIC: &[u8] = b"\0asm";

/// The body of a `PUT` of an action. What OpenWhisk has beyond this is ignored.
#[derive(Debug, Default, Deserialize)]
struct ActionBody<'t> {
    #[serde(borrow, default)]
    exec: Option<Record<ExecBody<'t>>>,
    #[serde(default)]
    parameters: Option<Vec<Record<KeyValue>>>,
    #[serde(default)]
    annotations: Option<Vec<Record<KeyValue>>>,
    #[serde(default)]
    limits: Option<Record<LimitsBody>>,
    #[serde(default)]
    publish: Option<bool>,
    #[serde(default)]
    version: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ExecBody<'t> {
    kind: String,
    #[serde(borrow, default)]
    code: Option<Cow<'t, str>>,
    #[serde(default)]
    binary: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct LimitsBody {
    timeout: Option<u64>,
    memory: Option<u64>,
    logs: Option<u64>,
    concurrency: Option<u64>,
}

/// A checked `PUT` of an action: what is `None` stays as it is.
#[derive(Debug)]
pub struct ActionPut {
    /// The module.
    pub code: Option<Vec<u8>>,
    /// Whether its owner calls it binary.
    pub binary: Option<bool>,
    parameters: Option<Vec<KeyValue>>,
    annotations: Option<Vec<KeyValue>>,
    limits: LimitsBody,
    publish: Option<bool>,
    version: Option<Version>,
}

/// Reads and checks the body of a `PUT` of an action.
///
/// # Errors
/// [`BadRequest`] with what is wrong.
pub fn action_put(body: &[u8]) -> Result<ActionPut, BadRequest> {
    let body: ActionBody<'_> = body::record(body)?;
    let plain = |pairs: Option<Vec<Record<KeyValue>>>| -> Option<Vec<KeyValue>> {
        Some(pairs?.into_iter().map(|pair| pair.0).collect())
    };
    let (parameters, annotations) = (plain(body.parameters), plain(body.annotations));
    let exec = body.exec.map(|exec| exec.0);
    for pairs in [&parameters, &annotations].into_iter().flatten() {
        let mut keys = HashSet::new();
        if let Some(twice) = pairs.iter().find(|pair| !keys.insert(pair.key.as_str())) {
            return Err(BadRequest::new(format!("The key '{}' is given twice.", short(&twice.key))));
        }
    }
    let version = match body.version {
        None => None,
        Some(text) => Some(
            Version::parse(&text)
                .ok_or_else(|| BadRequest::new("A version has three numbers, such as 0.0.1."))?,
        ),
    };
    let binary = exec.as_ref().and_then(|exec| exec.binary);
    Ok(ActionPut {
        code: exec.map(code).transpose()?,
        binary,
        parameters,
        annotations,
        limits: body.limits.unwrap_or_default().0,
        publish: body.publish,
        version,
    })
}

fn code(exec: ExecBody<'_>) -> Result<Vec<u8>, BadRequest> {
    if exec.kind != KIND && exec.kind != "wasi" {
        let text = format!(
            "The kind '{}' is not supported; this node runs '{KIND}', WASI command modules.",
            short(&exec.kind)
        );
        return Err(BadRequest::new(text));
    }
    let code = exec
        .code
        .ok_or_else(|| BadRequest::new("The action has no code; send exec.code, a module in base64."))?;
    let decoded = STANDARD.decode(code.as_bytes());
    module(decoded.map_err(|error| BadRequest::new(format!("The code is not base64: {error}.")))?)
}

/// Checks that bytes begin as a module does; all else is found out where it is compiled.
///
/// # Errors
/// [`BadRequest`].
pub fn module(bytes: Vec<u8>) -> Result<Vec<u8>, BadRequest> {
    if bytes.is_empty() {
        return Err(BadRequest::new("The code is empty; send a WebAssembly module."));
    }
    if !bytes.starts_with(WASM_MAGIC) {
        let text =
            "The code is not a WebAssembly module in binary form; compile the program for wasm32-wasip1.";
        return Err(BadRequest::new(text));
    }
    Ok(bytes)
}

/// A client's own words in an error, not too many of them.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

impl ActionPut {
    /// One that says only these limits; all else stays as it is.
    #[must_use]
    pub fn of_limits(timeout: Option<u64>, memory: Option<u64>, logs: Option<u64>) -> Self {
        let limits = LimitsBody { timeout, memory, logs, concurrency: None };
        let (parameters, annotations, publish, version) = (None, None, None, None);
        Self { code: None, binary: None, parameters, annotations, limits, publish, version }
    }

    /// The same with a module.
    #[must_use]
    pub fn with_code(self, module: Vec<u8>) -> Self {
        Self { code: Some(module), ..self }
    }

    /// The limits of the action, with those it has where nothing was said.
    ///
    /// # Errors
    /// [`BadRequest`] if they are out of the tenant's range.
    pub fn limits(&self, before: ActionLimits, tenant: &TenantLimits) -> Result<ActionLimits, BadRequest> {
        let LimitsBody { timeout, memory, logs, concurrency } = self.limits;
        let limits = ActionLimits {
            timeout: timeout.unwrap_or(before.timeout.min(tenant.time_ms)),
            memory: memory.unwrap_or(before.memory.min(tenant.memory_bytes >> 20)),
            logs: logs.unwrap_or(before.logs),
            concurrency: concurrency.unwrap_or(before.concurrency),
        };
        Ok(limits.checked(tenant)?)
    }

    /// Changes an action as this says, but for its module.
    #[must_use]
    pub fn apply(self, mut action: Action, limits: ActionLimits, is_new: bool) -> Action {
        action.version = match self.version {
            Some(version) => version,
            None if is_new => Version::FIRST,
            None => action.version.next(),
        };
        action.binary = self.binary.unwrap_or(action.binary);
        action.parameters = self.parameters.unwrap_or(action.parameters);
        action.annotations = self.annotations.unwrap_or(action.annotations);
        action.publish = self.publish.unwrap_or(action.publish);
        action.limits = limits;
        action
    }
}

#[derive(Debug, Serialize)]
struct ExecView<'t> {
    kind: &'t str,
    binary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

/// An action as OpenWhisk shows it.
#[derive(Debug, Serialize)]
pub struct ActionView<'t> {
    namespace: &'t TenantName,
    name: &'t EntityName,
    version: Version,
    publish: bool,
    exec: ExecView<'t>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'t [KeyValue]>,
    annotations: Vec<Cow<'t, KeyValue>>,
    limits: ActionLimits,
    updated: u64,
}

impl<'t> ActionView<'t> {
    /// With parameters, and with its code if that is given.
    #[must_use]
    pub fn full(namespace: &'t TenantName, action: &'t Action, code: Option<&[u8]>) -> Self {
        let mut view = Self::summary(namespace, action);
        view.parameters = Some(&action.parameters);
        view.exec.code = code.map(|code| STANDARD.encode(code));
        view
    }

    /// As in lists.
    #[must_use]
    pub fn summary(namespace: &'t TenantName, action: &'t Action) -> Self {
        let kind = KeyValue::new("exec", format!("\"{KIND}\"")).ok().map(Cow::Owned);
        let own = action.annotations.iter().filter(|pair| pair.key != "exec").map(Cow::Borrowed);
        Self {
            namespace,
            name: &action.name,
            version: action.version,
            publish: action.publish,
            exec: ExecView { kind: KIND, binary: action.binary, code: None },
            parameters: None,
            annotations: own.chain(kind).collect(),
            limits: action.limits,
            updated: action.updated_ms,
        }
    }
}

/// How an activation ended, as OpenWhisk shows it.
#[derive(Debug, Serialize)]
pub struct ResponseView<'t> {
    result: &'t RawValue,
    size: usize,
    status: &'static str,
    success: bool,
}

impl<'t> ResponseView<'t> {
    /// Of an activation.
    #[must_use]
    pub fn new(activation: &'t Activation) -> Self {
        Self {
            result: &activation.result,
            size: activation.result.get().len(),
            status: activation.status.words(),
            success: activation.status.code() == 0,
        }
    }
}

/// An activation as OpenWhisk shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationView<'t> {
    activation_id: String,
    namespace: &'t TenantName,
    name: &'t EntityName,
    version: Version,
    publish: bool,
    subject: &'t TenantName,
    start: u64,
    end: u64,
    duration: u64,
    status_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<ResponseView<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<&'t [String]>,
    annotations: Vec<KeyValue>,
}

impl<'t> ActivationView<'t> {
    /// As in lists.
    #[must_use]
    pub fn summary(namespace: &'t TenantName, activation: &'t Activation) -> Self {
        Self {
            activation_id: activation.id.to_string(),
            namespace,
            name: &activation.action,
            version: activation.version,
            publish: false,
            subject: namespace,
            start: activation.start_ms,
            end: activation.end_ms,
            duration: activation.end_ms.saturating_sub(activation.start_ms),
            status_code: activation.status.code(),
            response: None,
            logs: None,
            annotations: annotations(namespace, activation),
        }
    }

    /// With result and logs.
    #[must_use]
    pub fn full(namespace: &'t TenantName, activation: &'t Activation) -> Self {
        let (response, logs) = (Some(ResponseView::new(activation)), Some(activation.logs.as_slice()));
        Self { response, logs, ..Self::summary(namespace, activation) }
    }
}

fn annotations(namespace: &TenantName, activation: &Activation) -> Vec<KeyValue> {
    let limits = activation.limits;
    let init = activation.init_us.map(|init| ("initTime", (init / 1000).to_string()));
    let texts = [
        ("path", format!("\"{namespace}/{}\"", activation.action)),
        ("kind", format!("\"{KIND}\"")),
        ("timeout", activation.timeout.to_string()),
        ("waitTime", (activation.wait_us / 1000).to_string()),
        (
            "limits",
            format!(
                "{{\"concurrency\":{},\"logs\":{},\"memory\":{},\"timeout\":{}}}",
                limits.concurrency, limits.logs, limits.memory, limits.timeout
            ),
        ),
        ("cpuTimeUs", activation.cpu_us.to_string()),
    ];
    // Names have nothing in them that JSON would escape, so all of these are JSON.
    texts.into_iter().chain(init).filter_map(|(key, json)| KeyValue::new(key, json).ok()).collect()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
