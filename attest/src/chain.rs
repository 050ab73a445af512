//! The chain from the key that signs reports to a root: VCEK <- ASK <- ARK or VLEK <- ASVK <- ARK with AMD's roots, which
//! are built in (`roots/`), or the same shape with a software platform's root. Which of the two it is follows from the root
//! alone: a chain that ends at AMD's is that product's, any other is a software platform's or refused.
//!
//! Extensions and their meaning: AMD, document 57230 ("VCEK Certificate and KDS Interface Specification").

use crate::certificate::{Certificate, CertificateError, PublicKey};
use crate::report::SigningKey;
use crate::software_mark;
use crate::tcb::{Platform, Tcb};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use der::Decode;
use der::asn1::{Ia5StringRef, ObjectIdentifier, OctetStringRef};

/// Most certificates in a chain.
pub const MAX_CERTIFICATES: usize = 3;

/// A product's root and its authority for VCEKs, in DER.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// Which product.
    pub platform: Platform,
    /// The root, signed by itself.
    pub ark: &'static [u8],
    /// The authority for VCEKs, signed by the root. (A test verifies that once for all verifications.)
    pub ask: &'static [u8],
}

/// AMD's roots.
pub const BUILT_IN: [BuiltIn; 3] = [
    BuiltIn {
        platform: Platform::Milan,
        ark: include_bytes!("roots/milan-ark.der"),
        ask: include_bytes!("roots/milan-ask.der"),
    },
    BuiltIn {
        platform: Platform::Genoa,
        ark: include_bytes!("roots/genoa-ark.der"),
        ask: include_bytes!("roots/genoa-ask.der"),
    },
    BuiltIn {
        platform: Platform::Turin,
        ark: include_bytes!("roots/turin-ark.der"),
        ask: include_bytes!("roots/turin-ask.der"),
    },
];

/// Identifiers of extensions in VCEKs and VLEKs.
pub mod oid {
    use super::ObjectIdentifier;

    /// Name of the product and its stepping.
    pub const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
    /// TCB: boot loader.
    pub const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
    /// TCB: operating system of the security processor.
    pub const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
    /// TCB: SNP firmware.
    pub const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
    /// TCB: microcode.
    pub const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
    /// TCB: first mutable code, Turin and later.
    pub const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
    /// Identity of the chip, in VCEKs.
    pub const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
    /// Name of the cloud provider, in VLEKs.
    pub const PROVIDER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
}

/// Why a chain is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No certificate, or more than [`MAX_CERTIFICATES`].
    #[error("a chain has one to {MAX_CERTIFICATES} certificates, not {0}")]
    Count(usize),
    /// One of them, counted from the leaf, can't be read.
    #[error("certificate {0}: {1}")]
    Certificate(usize, CertificateError),
    /// It ends at no root that is known.
    #[error("it ends at no root of AMD's and no software platform's")]
    UnknownRoot,
    /// The authority between leaf and root is not in the evidence and not built in.
    #[error("the certificate between leaf and root is missing")]
    MissingIntermediate,
    /// The authority is not the root's.
    #[error("the intermediate certificate is not signed by the root")]
    Intermediate,
    /// The leaf is not the authority's.
    #[error("the leaf certificate is not signed by the intermediate one")]
    Leaf,
    /// The leaf has not what VCEKs and VLEKs have.
    #[error("the leaf certificate has no valid {0}")]
    LeafField(&'static str),
    /// A mark of software platforms in a genuine chain, or a part without it in a software platform's.
    #[error("the mark of software platforms is where it may not be, or missing")]
    Mark,
}

/// What the certificate of the report's key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// VCEK or VLEK; never none.
    pub kind: SigningKey,
    /// The TCB that the key was derived for.
    pub tcb: Tcb,
    /// The chip, padded with zeros as in reports; VLEKs belong to none.
    pub chip_id: Option<[u8; 64]>,
    /// The product's name as AMD wrote it.
    pub product_name: String,
    /// The provider, in VLEKs.
    pub provider: Option<String>,
    /// The key: a point on P-384, uncompressed.
    pub key: Vec<u8>,
}

/// A chain whose signatures hold, up to a root. Nothing was said about dates yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Whose root it ends at.
    pub platform: Platform,
    /// The certificate of the report's key.
    pub leaf: Leaf,
    /// All three, leaf first, built-in ones filled in.
    pub certificates: [Certificate; 3],
}

impl Chain {
    /// Verifies certificates in DER, leaf first. Of a genuine chain the root, or root and ASK, may be left out.
    ///
    /// # Errors
    /// If it does not lead to a root.
    pub fn verify<C: AsRef<[u8]>>(certificates: &[C]) -> Result<Chain, ChainError> {
        if certificates.is_empty() || certificates.len() > MAX_CERTIFICATES {
            return Err(ChainError::Count(certificates.len()));
        }
        let mut given = Vec::new();
        for (i, der) in certificates.iter().enumerate() {
            given.push(Certificate::parse(der.as_ref()).map_err(|error| ChainError::Certificate(i, error))?);
        }
        let mut given = given.into_iter();
        let leaf = given.next().ok_or(ChainError::Count(0))?;
        match (given.next(), given.next()) {
            (Some(intermediate), Some(root)) if root.has_software_mark() => {
                software(leaf, intermediate, root)
            }
            (intermediate, root) => genuine(&BUILT_IN, leaf, intermediate, root),
        }
    }

    /// From when and until when all of its certificates are valid, in seconds since 1970.
    pub fn validity(&self) -> (u64, u64) {
        let from = self.certificates.iter().map(|one| one.not_before).max().unwrap_or(u64::MAX);
        let until = self.certificates.iter().map(|one| one.not_after).min().unwrap_or(0);
        (from, until)
    }

    /// SHA-256 of the root's DER.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.certificates[2].sha256()
    }
}

/// A chain to one of these roots. They are AMD's but for the tests of this file.
fn genuine(
    roots: &[BuiltIn],
    leaf: Certificate,
    intermediate: Option<Certificate>,
    root: Option<Certificate>,
) -> Result<Chain, ChainError> {
    let parse = |der: &[u8]| Certificate::parse(der).map_err(|_| ChainError::UnknownRoot);
    for built_in in roots {
        let ark = parse(built_in.ark)?;
        let concerns = match (&intermediate, &root) {
            (_, Some(root)) => root.der() == built_in.ark,
            (Some(intermediate), None) => intermediate.names_as_issuer(&ark),
            // VLEKs' issuers are not built in, so that only VCEKs can come alone.
            (None, None) => leaf.names_as_issuer(&parse(built_in.ask)?),
        };
        if !concerns {
            continue;
        }
        let intermediate = match intermediate {
            Some(given) if given.der() == built_in.ask => given,
            Some(given) if given.is_authority() && given.is_signed_by(&ark) => given,
            Some(_) => return Err(ChainError::Intermediate),
            None => parse(built_in.ask)?,
        };
        if leaf.has_software_mark() || intermediate.has_software_mark() {
            return Err(ChainError::Mark);
        }
        if !leaf.is_signed_by(&intermediate) {
            return Err(ChainError::Leaf);
        }
        let kind = amd_kind(&leaf, &intermediate, &ark)?;
        let read = read_leaf(&leaf, built_in.platform, kind)?;
        return Ok(Chain {
            platform: built_in.platform,
            leaf: read,
            certificates: [leaf, intermediate, ark],
        });
    }
    let vlek = leaf.subject_name == "SEV-VLEK" && intermediate.is_none();
    Err(if vlek { ChainError::MissingIntermediate } else { ChainError::UnknownRoot })
}

/// VCEK or VLEK, by the names of leaf and authority: each authority signs one kind only.
fn amd_kind(
    leaf: &Certificate,
    intermediate: &Certificate,
    ark: &Certificate,
) -> Result<SigningKey, ChainError> {
    let product = ark.subject_name.strip_prefix("ARK-").ok_or(ChainError::UnknownRoot)?;
    let authority = intermediate.subject_name.strip_prefix("SEV-").ok_or(ChainError::Intermediate)?;
    let kind = match authority.strip_prefix("VLEK-") {
        Some(of) if of == product => SigningKey::Vlek,
        None if authority == product => SigningKey::Vcek,
        _ => return Err(ChainError::Intermediate),
    };
    let wanted = if kind == SigningKey::Vcek { "SEV-VCEK" } else { "SEV-VLEK" };
    if leaf.subject_name == wanted { Ok(kind) } else { Err(ChainError::LeafField("subject")) }
}

fn software(leaf: Certificate, intermediate: Certificate, root: Certificate) -> Result<Chain, ChainError> {
    let marked = |one: &Certificate| one.extension(software_mark::OID) == Some(software_mark::VALUE);
    let named =
        root.subject_name == software_mark::ROOT && intermediate.subject_name == software_mark::ISSUER;
    if !named || ![&leaf, &intermediate, &root].into_iter().all(marked) {
        return Err(ChainError::Mark);
    }
    if !(root.is_authority() && root.is_signed_by(&root)) {
        return Err(ChainError::UnknownRoot);
    }
    if !(intermediate.is_authority() && intermediate.is_signed_by(&root)) {
        return Err(ChainError::Intermediate);
    }
    if !leaf.is_signed_by(&intermediate) {
        return Err(ChainError::Leaf);
    }
    let read = read_leaf(&leaf, Platform::Software, SigningKey::Vcek)?;
    if !read.chip_id.is_some_and(|id| software_mark::is_marked(&id)) {
        return Err(ChainError::Mark);
    }
    Ok(Chain { platform: Platform::Software, leaf: read, certificates: [leaf, intermediate, root] })
}

fn read_leaf(leaf: &Certificate, platform: Platform, kind: SigningKey) -> Result<Leaf, ChainError> {
    let part = |oid: ObjectIdentifier, what: &'static str| {
        let value = leaf.extension(oid).ok_or(ChainError::LeafField(what))?;
        u8::from_der(value).map_err(|_| ChainError::LeafField(what))
    };
    let text = |oid: ObjectIdentifier, what: &'static str| {
        let value = leaf.extension(oid).ok_or(ChainError::LeafField(what))?;
        let text = Ia5StringRef::from_der(value).map_err(|_| ChainError::LeafField(what))?.as_str();
        let printable = text.len() <= 128 && !text.chars().any(|c| c.is_ascii_control());
        if printable { Ok(text.to_string()) } else { Err(ChainError::LeafField(what)) }
    };
    let tcb = Tcb {
        fmc: if platform == Platform::Turin { part(oid::FMC, "FMC version")? } else { 0 },
        bootloader: part(oid::BOOTLOADER, "boot loader version")?,
        tee: part(oid::TEE, "TEE version")?,
        snp: part(oid::SNP, "SNP version")?,
        microcode: part(oid::MICROCODE, "microcode version")?,
    };
    let PublicKey::P384(key) = &leaf.key else { return Err(ChainError::LeafField("key")) };
    let (chip_id, provider) = match kind {
        SigningKey::Vcek => (Some(chip_id(leaf, platform)?), None),
        _ => (None, Some(text(oid::PROVIDER, "provider")?)),
    };
    Ok(Leaf {
        kind,
        tcb,
        chip_id,
        product_name: text(oid::PRODUCT_NAME, "product name")?,
        provider,
        key: key.clone(),
    })
}

/// The chip's identity: raw bytes in most certificates, an OCTET STRING in some.
fn chip_id(leaf: &Certificate, platform: Platform) -> Result<[u8; 64], ChainError> {
    let missing = ChainError::LeafField("chip identity");
    let value = leaf.extension(oid::HARDWARE_ID).ok_or(missing)?;
    let len = platform.chip_id_bytes();
    let raw = if value.len() == len {
        value
    } else {
        <&OctetStringRef>::from_der(value).map_err(|_| missing)?.as_bytes()
    };
    if raw.len() != len {
        return Err(missing);
    }
    let mut id = [0; 64];
    id[..len].copy_from_slice(raw);
    Ok(id)
}

#[cfg(all(test, feature = "std"))]
#[path = "chain_tests.rs"]
mod tests;
