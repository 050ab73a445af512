//! Tenants as the node serves them: their keys, and what of their limits is in use.

use crate::limits::TenantLimits;
use crate::migration::Away;
use crate::names::{TenantName, hex, now_ms, parse_hex};
use crate::records::TenantRecord;
use crate::store::commit::Owner;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

/// Characters of a key; 64 of them have 380 bits.
const KEY_CHARACTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const KEY_LENGTH: usize = 64;
/// Longest credentials that are looked at.
const MAX_CREDENTIALS: usize = 1024;

/// A tenant's credentials as OpenWhisk writes them: `uuid:key`. Not stored; printed redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    uuid: String,
    key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl Credentials {
    /// New, random ones.
    ///
    /// # Panics
    /// If the kernel gives no random bytes, which it always does.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes");
        // RFC 9562, version 4.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let digits = hex(&bytes);
        let uuid = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
        let mut key = String::with_capacity(KEY_LENGTH);
        while key.len() < KEY_LENGTH {
            let mut random = [0u8; KEY_LENGTH];
            getrandom::fill(&mut random).expect("the kernel has random bytes");
            // Numbers of 6 bits beyond the characters are left out, so that all characters are equally likely.
            let chosen = random.iter().filter_map(|byte| KEY_CHARACTERS.get(usize::from(byte & 63)));
            key.extend(chosen.map(|character| char::from(*character)).take(KEY_LENGTH - key.len()));
        }
        Self { uuid, key }
    }

    /// Reads the value of an `Authorization` header.
    #[must_use]
    pub fn from_header(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_CREDENTIALS)?;
        let (scheme, rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        Self::parse(std::str::from_utf8(&STANDARD.decode(rest.trim()).ok()?).ok()?)
    }

    /// Reads `uuid:key`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (uuid, key) = text.split_once(':')?;
        Some(Self { uuid: uuid.to_owned(), key: key.to_owned() })
    }

    /// As text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}:{}", self.uuid, self.key)
    }

    /// The record of a new tenant that these credentials open.
    ///
    /// # Panics
    /// If the kernel gives no random bytes, which it always does.
    #[must_use]
    pub fn record(&self, name: TenantName, limits: TenantLimits) -> TenantRecord {
        let mut salt = [0u8; 16];
        getrandom::fill(&mut salt).expect("the kernel has random bytes");
        TenantRecord {
            name,
            uuid: self.uuid.clone(),
            salt: hex(&salt),
            key_hash: hex(&hash(&salt, &self.key)),
            limits,
            created_ms: now_ms(),
        }
    }
}

/// A plain salted SHA-256, not a slow password hash: keys are never chosen by people but have 380 random bits, which nobody
/// finds by trying, however fast; and this is computed for every request.
fn hash(salt: &[u8; 16], key: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

/// Where a tenant is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Here.
    #[default]
    Here,
    /// Its tasks are parked, to go on elsewhere or here: who wants something waits.
    Parked,
    /// At another node.
    Away(Arc<Away>),
}

/// A tenant in service.
#[derive(Debug)]
pub struct Tenant {
    /// What it is.
    pub record: TenantRecord,
    owner: Arc<Owner>,
    salt: [u8; 16],
    key_hash: [u8; 32],
    running: AtomicU64,
    body_bytes: AtomicU64,
    removed: AtomicBool,
    /// Memory of it is still to come from where it was.
    incomplete: AtomicBool,
    standing: watch::Sender<Standing>,
    /// Requests that wait for it to stand somewhere.
    waiting: AtomicU64,
}

/// Something of a limit; given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    tenant: Arc<Tenant>,
    what: fn(&Tenant) -> &AtomicU64,
    amount: u64,
}

impl Share {
    /// Takes more, as far as the limit allows.
    #[must_use]
    pub fn grow(&mut self, more: u64, limit: u64) -> bool {
        let fine = take((self.what)(&self.tenant), more, limit).is_ok();
        self.amount += if fine { more } else { 0 };
        fine
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        (self.what)(&self.tenant).fetch_sub(self.amount, Ordering::Relaxed);
    }
}

fn take(counter: &AtomicU64, amount: u64, limit: u64) -> Result<u64, u64> {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        now.checked_add(amount).filter(|total| *total <= limit)
    })
}

impl Tenant {
    fn new(record: TenantRecord) -> Option<Self> {
        let (salt, key_hash) = (parse_hex(&record.salt)?, parse_hex(&record.key_hash)?);
        let zero = AtomicU64::default;
        let owner = Arc::new(Owner { name: record.name.clone(), uuid: record.uuid.clone() });
        Some(Self {
            record,
            owner,
            salt,
            key_hash,
            running: zero(),
            body_bytes: zero(),
            removed: AtomicBool::new(false),
            incomplete: AtomicBool::new(false),
            standing: watch::Sender::default(),
            waiting: zero(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &TenantName {
        &self.record.name
    }

    /// What it may use.
    #[must_use]
    pub fn limits(&self) -> &TenantLimits {
        &self.record.limits
    }

    /// Whose its activations are.
    #[must_use]
    pub fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// It was removed while somebody still held it.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Memory of it is still to come, or has come whole, or will not come any more.
    pub fn expect_memory(&self, expected: bool) {
        self.incomplete.store(expected, Ordering::Release);
    }

    /// Memory of it is still to come: should its CVM end now it is lost, and does not begin anew.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Acquire)
    }

    /// Where it is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Where it is, and when that changes.
    #[must_use]
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// It is somewhere else now, or may be.
    pub fn stand(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// A place for one more request that waits until it stands somewhere, of `most`.
    ///
    /// # Errors
    /// How many wait.
    pub fn begin_waiting(self: &Arc<Self>, most: u64) -> Result<Share, u64> {
        take(&self.waiting, 1, most)?;
        Ok(Share { tenant: self.clone(), what: |tenant| &tenant.waiting, amount: 1 })
    }

    /// A place for one more activation, or how many there are.
    ///
    /// # Errors
    /// How many there are.
    pub fn begin_activation(self: &Arc<Self>) -> Result<Share, u64> {
        take(&self.running, 1, self.limits().concurrency.into())?;
        Ok(Share { tenant: self.clone(), what: |tenant| &tenant.running, amount: 1 })
    }

    /// Room for the bodies of requests; it starts with none.
    #[must_use]
    pub fn body_share(self: &Arc<Self>) -> Share {
        Share { tenant: self.clone(), what: |tenant| &tenant.body_bytes, amount: 0 }
    }

    /// Activations that run now.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }
}

/// All tenants in service.
#[derive(Debug, Default)]
pub struct Tenants(RwLock<HashMap<String, Arc<Tenant>>>);

impl Tenants {
    /// The tenants that the store knows. One whose record is damaged is left out, with a warning.
    #[must_use]
    pub fn load(records: Vec<Arc<TenantRecord>>) -> Self {
        let tenants = Self::default();
        for record in records {
            tenants.add(TenantRecord::clone(&record));
        }
        tenants
    }

    /// Takes a tenant into service.
    pub fn add(&self, record: TenantRecord) {
        let (name, uuid) = (record.name.clone(), record.uuid.clone());
        match Tenant::new(record) {
            Some(tenant) => {
                self.0.write().unwrap_or_else(PoisonError::into_inner).insert(uuid, Arc::new(tenant));
            }
            None => {
                tracing::warn!(%name, "the record of a tenant is damaged; remove the tenant and add it again")
            }
        }
    }

    /// Takes whoever has a name out of service.
    fn remove(&self, name: &TenantName) {
        let mut tenants = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tenants.retain(|_, tenant| {
            let stays = tenant.name() != name;
            if !stays {
                tenant.removed.store(true, Ordering::Release);
            }
            stays
        });
    }

    /// Takes this one out of service, and no later one of its name.
    pub fn retire(&self, tenant: &Tenant) {
        let mut tenants = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = tenants.remove(&tenant.record.uuid) {
            tenant.removed.store(true, Ordering::Release);
        }
    }

    /// The tenant whose credentials these are. An unknown uuid takes as long as a wrong key.
    #[must_use]
    pub fn authenticate(&self, credentials: &Credentials) -> Option<Arc<Tenant>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&credentials.uuid).cloned();
        let (salt, wanted) =
            known.as_ref().map_or(([0; 16], [0; 32]), |tenant| (tenant.salt, tenant.key_hash));
        let fits = bool::from(hash(&salt, &credentials.key).ct_eq(&wanted));
        known.filter(|_| fits)
    }

    /// The one of this name.
    #[must_use]
    pub fn named(&self, name: &TenantName) -> Option<Arc<Tenant>> {
        let tenants = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tenants.values().find(|tenant| tenant.name() == name).cloned()
    }

    /// The one of this name, unless it is a later one, with other credentials.
    #[must_use]
    pub fn same(&self, name: &TenantName, uuid: &str) -> Option<Arc<Tenant>> {
        self.named(name).filter(|tenant| tenant.record.uuid == uuid)
    }

    /// A tenant has come; one that was here before stays the same if its record does.
    pub fn welcome(&self, record: &TenantRecord) -> Option<Arc<Tenant>> {
        if let Some(known) = self.named(&record.name).filter(|known| known.record == *record) {
            return Some(known);
        }
        self.remove(&record.name);
        self.add(record.clone());
        self.named(&record.name)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants() -> (Tenants, Credentials) {
        let credentials = Credentials::random();
        let tenants = Tenants::default();
        let limits = TenantLimits { concurrency: 2, ..TenantLimits::default() };
        tenants.add(credentials.record(TenantName::new("guest").unwrap(), limits));
        (tenants, credentials)
    }

    #[test]
    fn only_the_right_key_opens() {
        let (tenants, credentials) = tenants();
        assert!(tenants.authenticate(&credentials).is_some());
        let mut wrong = credentials.clone();
        wrong.key.replace_range(..1, if wrong.key.starts_with('A') { "B" } else { "A" });
        assert!(tenants.authenticate(&wrong).is_none());
        let other = Credentials { uuid: Credentials::random().uuid, key: credentials.key.clone() };
        assert!(tenants.authenticate(&other).is_none());
        let empty = Credentials { uuid: credentials.uuid.clone(), key: String::new() };
        assert!(tenants.authenticate(&empty).is_none());
        tenants.remove(&TenantName::new("guest").unwrap());
        assert!(tenants.authenticate(&credentials).is_none());
    }

    #[test]
    fn keys_are_long_random_and_never_in_a_record_or_a_debug_print() {
        let credentials = Credentials::random();
        assert_eq!((credentials.uuid.len(), credentials.key.len()), (36, 64));
        assert_ne!(credentials, Credentials::random());
        let record = credentials.record(TenantName::new("a").unwrap(), TenantLimits::default());
        let printed = format!("{record:?} {credentials:?} {}", serde_json::to_string(&record).unwrap());
        assert!(!printed.contains(&credentials.key));
        let again = credentials.record(TenantName::new("a").unwrap(), TenantLimits::default());
        assert_ne!(record.key_hash, again.key_hash, "salted");
    }

    #[test]
    fn headers_are_read_and_nonsense_is_refused() {
        let header = |text: &str| format!("Basic {}", STANDARD.encode(text)).into_bytes();
        let read = Credentials::from_header(&header("u:k:v")).unwrap();
        assert_eq!((read.uuid.as_str(), read.key.as_str()), ("u", "k:v"));
        assert!(Credentials::from_header(&header("no colon")).is_none());
        for bad in
            [b"".as_slice(), b"Basic", b"Basic !!!", b"Bearer dTpr", b"\xff\xfe", &header(&"x:".repeat(2000))]
        {
            assert!(Credentials::from_header(bad).is_none());
        }
    }

    #[test]
    fn shares_are_given_back() {
        let (tenants, credentials) = tenants();
        let tenant = tenants.authenticate(&credentials).unwrap();
        let (first, _second) = (tenant.begin_activation().unwrap(), tenant.begin_activation().unwrap());
        assert_eq!(tenant.begin_activation().unwrap_err(), 2);
        drop(first);
        assert!(tenant.begin_activation().is_ok());
        let mut body = tenant.body_share();
        assert!(body.grow(10, 15) && !body.grow(10, 15) && body.grow(5, 15));
        drop(body);
        assert!(tenant.body_share().grow(15, 15));
    }
}
