//! The node's platform: who signs the reports of its CVMs. Here that is a software platform, a development root in a folder; its reports
//! say so, and no policy accepts them whose author has not written that it may.

use nacre_attest::software::{ReportFields, Signer, SoftwareError, SoftwarePlatform};
use nacre_vmm::evidence::{self, Identity, Platform, ReportDone, ReportRequest};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;

/// The name under which a platform of its own knows the node.
const NODE: &str = "local";

/// A software platform that signs this node's reports.
pub struct NodePlatform {
    signer: Arc<Signer>,
    runtime: Handle,
}

impl NodePlatform {
    /// Opens the platform in `dir`; makes one if there is none. Needs a tokio runtime, on which reports are signed.
    ///
    /// # Errors
    /// [`SoftwareError`].
    pub fn open(dir: &Path) -> Result<Arc<Self>, SoftwareError> {
        let platform = match SoftwarePlatform::init(dir) {
            Err(SoftwareError::Exists(_)) => SoftwarePlatform::open(dir)?,
            made => made?,
        };
        let signer = Arc::new(platform.signer(NODE)?);
        Ok(Arc::new(Self { signer, runtime: Handle::current() }))
    }

    /// How a CVM with this manifest proves what it is.
    #[must_use]
    pub fn identity(self: &Arc<Self>, manifest: Option<Manifest>) -> Identity {
        Identity {
            platform: self.clone(),
            host_data: manifest.as_ref().map_or([0; 32], |manifest| manifest.hash),
            manifest: manifest.map(|manifest| manifest.bytes),
        }
    }
}

/// A signed manifest, and the hash of what is signed in it.
#[derive(Clone)]
pub struct Manifest {
    /// All of it.
    pub bytes: Arc<[u8]>,
    /// SHA-256 of the manifest itself.
    pub hash: [u8; 32],
}

impl Platform for NodePlatform {
    fn report(&self, request: ReportRequest, done: ReportDone) {
        let signer = self.signer.clone();
        // A millisecond of computing, and more the first time: not on the thread that reads the rings.
        self.runtime.spawn_blocking(move || {
            let report = sign(&signer, &request);
            if let Err(error) = &report {
                tracing::error!(%error, "a report can't be made");
            }
            done(report.ok());
        });
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        self.signer.certificates().to_vec()
    }
}

fn sign(
    signer: &Signer,
    request: &ReportRequest,
) -> Result<[u8; nacre_attest::report::REPORT_BYTES], String> {
    let measurement = evidence::measurement(request.shape).map_err(|error| error.to_string())?;
    let mut report_id = [0; 32];
    getrandom::fill(&mut report_id).map_err(|error| error.to_string())?;
    let fields = ReportFields {
        measurement,
        host_data: request.host_data,
        report_data: request.report_data,
        report_id,
        debug: request.shape.debug_image,
    };
    signer.sign(&fields).map_err(|error| error.to_string())
}
