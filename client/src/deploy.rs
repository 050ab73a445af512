//! Bringing sealed code into a CVM, and taking it out again, as the owner or a broker.
//!
//! ```text
//! check what can be checked here -> PUT manifest -> evidence, verified -> status -> seal -> PUT package -> Install -> store
//! ```
//! The node gets the manifest and ciphertext; key and variables go to the verified CVM, sealed, and into the broker's store.

use crate::http::{Node, NodeError};
use crate::keys::from_hex;
use crate::node::ServiceView;
use crate::release::{Code, Release, ReleaseError, ReleaseSpec, Service};
use crate::session::{Expectations, SealedSession, SessionError};
use crate::store::{Store, StoreError};
use hyper::body::Bytes;
use nacre_attest::manifest::{Manifest, ManifestError, Mode, SignedManifest};
use nacre_attest::policy::Policy;
use nacre_attest::verify::{Verdict, hex};
use nacre_session::command::ModuleKind;
use nacre_session::{Refusal, SigningKey};

/// Why nothing was deployed or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The manifest is not signed by its owner.
    #[error("{0}; sign it with nacre manifest sign")]
    Manifest(#[from] ManifestError),
    /// The manifest is one of an open CVM.
    #[error(
        "the manifest is for open CVMs, which keep no secrets; write mode = \"sealed\" and sign it again"
    )]
    Open,
    /// The policy does not accept CVMs of this manifest.
    #[error("the policy would not accept a CVM with this manifest: {0}; change one of them")]
    Policy(&'static str),
    /// The compiler's key is not in the manifest.
    #[error("the manifest does not list the compiler's key; add it to compilers and sign it again")]
    Compiler,
    /// The manifest the CVM was launched with is another one.
    #[error("the CVM runs with another manifest of this owner; deploy again")]
    OtherManifest,
    /// There is nothing with this name.
    #[error("nothing with this name is installed; see nacre keybroker list")]
    Unknown,
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The session, or the CVM.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Signing and sealing.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The broker's store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is to be deployed, and by whose keys.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The CVM's manifest.
    pub manifest: &'a SignedManifest,
    /// What it must prove.
    pub policy: &'a Policy,
    /// The code.
    pub code: &'a Code,
    /// Its name.
    pub name: &'a str,
    /// Its version; the next one without.
    pub version: Option<u64>,
    /// What it is.
    pub kind: ModuleKind,
    /// Its variables.
    pub env: &'a [(String, String)],
    /// For services.
    pub service: Option<&'a Service>,
    /// Signs the code.
    pub compiler: &'a SigningKey,
    /// Signs the installation: the owner, or a broker.
    pub authority: &'a SigningKey,
    /// Of the key broker, that is to install it again where it is needed.
    pub store: Option<&'a Store>,
}

impl Order<'_> {
    fn spec(&self, version: u64) -> ReleaseSpec {
        let (name, kind, env) = (self.name.to_owned(), self.kind, self.env.to_vec());
        ReleaseSpec { name, version, kind, env, service: self.service.cloned() }
    }

    /// Checks what can be checked without anybody else.
    ///
    /// # Errors
    /// `Manifest`, `Open`, `Policy`, `Compiler`, `Session(NoAuthority)`, `Store`.
    pub fn check(&self) -> Result<Manifest, DeployError> {
        let manifest = self.manifest.verify()?;
        if manifest.mode != Mode::Sealed {
            return Err(DeployError::Open);
        }
        if !manifest.compilers.contains(&self.compiler.verifying_key()) {
            return Err(DeployError::Compiler);
        }
        let authority = self.authority.verifying_key();
        if manifest.owner != authority && !manifest.brokers.contains(&authority) {
            return Err(SessionError::NoAuthority.into());
        }
        let rule = self.policy.manifest.ok_or(SessionError::NoOwner)?;
        match () {
            () if rule.owner != *manifest.owner.as_bytes() => {
                return Err(DeployError::Policy("another owner"));
            }
            () if rule.mode != Mode::Sealed => return Err(SessionError::OpenPolicy.into()),
            () if rule.minimum_version > manifest.version => {
                return Err(DeployError::Policy("the manifest's version is too low"));
            }
            () => {}
        }
        if let (Some(store), Some(version)) = (self.store, self.version) {
            store.check(self.name, version, None)?;
        }
        Ok(manifest)
    }

    /// Seals it and gives it to the broker's store without a node: the broker installs it in the next CVM.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), `Release`, `Store`.
    pub fn register(&self, store: &Store) -> Result<Release, DeployError> {
        self.check()?;
        let newest = store.entry(self.name)?.map_or(0, |entry| entry.version);
        let version = self.version.unwrap_or(newest + 1);
        let (release, package) = Release::seal(self.code, self.spec(version), self.compiler)?;
        store.set_manifest(self.manifest)?;
        store.register(&release, &package)?;
        Ok(release)
    }
}

/// What was deployed.
#[derive(Debug)]
pub struct Deployed {
    /// The release; whoever keeps it can read the package.
    pub release: Release,
    /// Size of the package in bytes.
    pub package_bytes: u64,
    /// Where a service's clients connect.
    pub address: Option<String>,
    /// What the CVM has proved.
    pub verdict: Verdict,
}

/// Deploys sealed code: the CVM is launched if there is none, proves itself, and only then gets key and variables.
///
/// # Errors
/// [`DeployError`].
pub async fn deploy(node: &Node, order: &Order<'_>, expect: &Expectations) -> Result<Deployed, DeployError> {
    order.check()?;
    let signed = order.manifest;
    let encoded = signed.encode();
    if let Some(store) = order.store {
        store.set_manifest(signed)?;
    }
    if node.manifest().await?.as_deref() != Some(encoded.as_slice()) {
        node.put_manifest(signed).await?;
    }
    let expect = Expectations { provisioning: true, ..*expect };
    let mut session = SealedSession::open(node, order.policy, &expect).await?;
    if session.manifest().hash() != signed.hash() {
        return Err(DeployError::OtherManifest);
    }
    let version = match order.version {
        Some(version) => version,
        None => next_version(&mut session, order).await?,
    };
    let (release, package) = Release::seal(order.code, order.spec(version), order.compiler)?;
    let package = Bytes::from(package);
    node.put_package(&release.package, package.clone()).await?;
    if let Err(error) = session.install(&release, order.authority).await {
        // Nobody has its key any more; if the CVM did install it, that works without the node's copy.
        let _ = node.delete_package(&hex(&release.package)).await;
        return Err(error.into());
    }
    if let Some(store) = order.store {
        store.register(&release, &package)?;
        clear(node, store, order.name).await?;
    } else if release.service.is_none() {
        // A CVM that is launched later could not open it.
        node.delete_package(&hex(&release.package)).await?;
    }
    let address = match &release.service {
        Some(service) => run_service(node, &release, service).await?,
        None => None,
    };
    Ok(Deployed { package_bytes: package.len() as u64, address, verdict: session.verdict().clone(), release })
}

async fn next_version(session: &mut SealedSession, order: &Order<'_>) -> Result<u64, DeployError> {
    let installed = session.status(order.authority).await?;
    let installed = installed.iter().find(|one| one.name == order.name).map_or(0, |one| one.version);
    let entry = order.store.map(|store| store.entry(order.name)).transpose()?.flatten();
    Ok(installed.max(entry.map_or(0, |entry| entry.version)) + 1)
}

/// Why the node has not forgotten something.
pub(crate) enum ClearError {
    Node(NodeError),
    Store(StoreError),
}

impl From<NodeError> for ClearError {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

impl From<StoreError> for ClearError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ClearError> for DeployError {
    fn from(error: ClearError) -> Self {
        match error {
            ClearError::Node(error) => error.into(),
            ClearError::Store(error) => error.into(),
        }
    }
}

/// Has the node forget what nobody needs any more of a name.
pub(crate) async fn clear(node: &Node, store: &Store, name: &str) -> Result<(), ClearError> {
    let Some(entry) = store.entry(name)? else { return Ok(()) };
    for id in &entry.obsolete {
        if let Some(id) = from_hex(id) {
            node.stop_service(&id).await?;
        }
        node.delete_package(id).await?;
    }
    Ok(store.cleared(name, &entry.obsolete)?)
}

/// Runs a service at its port, in the place of the sealed one that has it.
pub(crate) async fn run_service(
    node: &Node,
    release: &Release,
    service: &Service,
) -> Result<Option<String>, NodeError> {
    for (id, port) in services(node).await? {
        if port == service.port && id != release.package {
            node.stop_service(&id).await?;
            node.delete_package(&hex(&id)).await?;
        }
    }
    node.run_service(&release.package, service.port, service.restart.as_deref()).await
}

/// The sealed services that the node runs: packages and ports.
pub(crate) async fn services(node: &Node) -> Result<Vec<([u8; 16], u16)>, NodeError> {
    let all: Vec<ServiceView> = node.listed("/v1/deployments").await?;
    let service = |one: &ServiceView| {
        let id = from_hex(one.name.strip_prefix("sealed-")?)?;
        let port = one.address.as_ref()?.rsplit_once(':')?.1;
        Some((id, port.parse().ok()?))
    };
    Ok(all.iter().filter_map(service).collect())
}

/// What is removed, and by whose key.
#[derive(Clone, Copy)]
pub struct Removal<'a> {
    /// What the CVM must prove.
    pub policy: &'a Policy,
    /// What goes.
    pub name: &'a str,
    /// Signs the removal: the owner, or a broker.
    pub authority: &'a SigningKey,
    /// The key broker's, that is not to install it again.
    pub store: Option<&'a Store>,
}

/// Removes sealed code from the CVM, the store, and the node as far as the store knows its packages. Returns the version.
///
/// # Errors
/// [`DeployError`]; `Unknown` if neither CVM nor store has it.
pub async fn remove(node: &Node, removal: &Removal<'_>, expect: &Expectations) -> Result<u64, DeployError> {
    let Removal { policy, name, authority, store } = *removal;
    let entry = store.map(|store| store.entry(name)).transpose()?.flatten();
    let newest = entry.as_ref().map(|entry| entry.version);
    let known = entry.and_then(|entry| entry.release.as_ref().map(|release| release.version));
    // First of all the store: the broker must not bring back what the CVM forgets.
    if let Some(store) = store {
        store.forget(name)?;
    }
    let expect = Expectations { provisioning: true, ..*expect };
    let mut session = SealedSession::open(node, policy, &expect).await?;
    let installed = session.status(authority).await?;
    let installed = installed.iter().find(|one| one.name == name).map(|one| one.version);
    if let Some(version) = installed {
        session.remove(name, version, authority).await?;
    }
    // Also what is not there: the node may hold an order to install it back, and deliver it later.
    if let Some(version) = newest.filter(|newest| installed.is_none_or(|installed| installed < *newest)) {
        match session.remove(name, version, authority).await {
            // A CVM of an older release, which keeps no note of it.
            Err(SessionError::Refused { reason: Refusal::UnknownAction, .. }) => {}
            done => done?,
        }
    }
    if let Some(store) = store {
        clear(node, store, name).await?;
    }
    installed.or(known).ok_or(DeployError::Unknown)
}
