//! Chains below roots of the test's own, for what no genuine vector is at hand: VLEKs, and authorities that sign what they
//! may not.

use super::*;
use crate::software::issue::{
    Curve, authority_extensions, encoded, extension, generate_key, issue, key_pair,
};
use std::boxed::Box;
use x509_cert::ext::Extension;

/// A root with AMD's names, an authority for each kind of key, and a key.
struct Lab {
    roots: [BuiltIn; 1],
    ask: Vec<u8>,
    ask_key: Vec<u8>,
    asvk: Vec<u8>,
    asvk_key: Vec<u8>,
    key: Vec<u8>,
    root_key: Vec<u8>,
}

impl Lab {
    fn new() -> Lab {
        let [root_key, ask_key, asvk_key, key] = std::array::from_fn(|_| generate_key(Curve::P384).unwrap());
        let authority = |name: &str, key: &[u8]| {
            let (key, root) = (key_pair(key).unwrap(), key_pair(&root_key).unwrap());
            issue("ARK-Turin", name, &key, &root, authority_extensions().unwrap()).unwrap()
        };
        let ark: &'static [u8] = Box::leak(authority("ARK-Turin", &root_key).into_boxed_slice());
        let ask = authority("SEV-Turin", &ask_key);
        let asvk = authority("SEV-VLEK-Turin", &asvk_key);
        let built_in: &'static [u8] = Box::leak(ask.clone().into_boxed_slice());
        let roots = [BuiltIn { platform: Platform::Turin, ark, ask: built_in }];
        Lab { roots, ask, ask_key, asvk, asvk_key, key, root_key }
    }

    /// A leaf with these extensions.
    fn leaf(&self, issuer: &str, signer: &[u8], subject: &str, extensions: Vec<Extension>) -> Vec<u8> {
        let (key, signer) = (key_pair(&self.key).unwrap(), key_pair(signer).unwrap());
        issue(issuer, subject, &key, &signer, extensions).unwrap()
    }

    fn verify(&self, chain: &[&[u8]]) -> Result<Chain, ChainError> {
        let mut parsed = chain.iter().map(|der| Certificate::parse(der).unwrap());
        genuine(&self.roots, parsed.next().unwrap(), parsed.next(), parsed.next())
    }
}

fn tcb() -> Vec<Extension> {
    let parts = [oid::FMC, oid::BOOTLOADER, oid::TEE, oid::SNP, oid::MICROCODE];
    let value = |(part, oid)| extension(oid, false, &encoded(&(part as u8 + 200)).unwrap()).unwrap();
    let mut all: Vec<Extension> = parts.into_iter().enumerate().map(value).collect();
    let product = Ia5StringRef::new("Turin-B0").unwrap();
    all.push(extension(oid::PRODUCT_NAME, false, &encoded(&product).unwrap()).unwrap());
    all
}

fn provider() -> Extension {
    let name = Ia5StringRef::new("a cloud").unwrap();
    extension(oid::PROVIDER, false, &encoded(&name).unwrap()).unwrap()
}

fn chip(value: &[u8]) -> Extension {
    extension(oid::HARDWARE_ID, false, value).unwrap()
}

fn with(mut all: Vec<Extension>, one: Extension) -> Vec<Extension> {
    all.push(one);
    all
}

#[test]
fn a_vlek_belongs_to_a_provider_and_no_chip() {
    let lab = Lab::new();
    let vlek = lab.leaf("SEV-VLEK-Turin", &lab.asvk_key, "SEV-VLEK", with(tcb(), provider()));
    for chain in [&[&vlek, lab.asvk.as_slice()][..], &[&vlek, &lab.asvk, lab.roots[0].ark]] {
        let found = lab.verify(chain).unwrap();
        assert_eq!((found.platform, found.leaf.kind), (Platform::Turin, SigningKey::Vlek));
        assert_eq!((found.leaf.provider.as_deref(), found.leaf.chip_id), (Some("a cloud"), None));
        let tcb = Tcb { fmc: 200, bootloader: 201, tee: 202, snp: 203, microcode: 204 };
        assert_eq!(found.leaf.tcb, tcb);
    }
    assert_eq!(lab.verify(&[&vlek]), Err(ChainError::MissingIntermediate));
    let nameless = lab.leaf("SEV-VLEK-Turin", &lab.asvk_key, "SEV-VLEK", tcb());
    assert_eq!(lab.verify(&[&nameless, &lab.asvk]), Err(ChainError::LeafField("provider")));
}

#[test]
fn authorities_sign_their_own_kind_only() {
    let lab = Lab::new();
    let all = || with(with(tcb(), provider()), chip(&[7; 8]));
    let vcek = lab.leaf("SEV-Turin", &lab.ask_key, "SEV-VCEK", all());
    let found = lab.verify(&[&vcek]).unwrap().leaf;
    assert_eq!((found.kind, found.chip_id.unwrap()[..8] == [7; 8]), (SigningKey::Vcek, true));
    let crossed = lab.leaf("SEV-Turin", &lab.ask_key, "SEV-VLEK", all());
    assert_eq!(lab.verify(&[&crossed, &lab.ask]), Err(ChainError::LeafField("subject")));
    let crossed = lab.leaf("SEV-VLEK-Turin", &lab.asvk_key, "SEV-VCEK", all());
    assert_eq!(lab.verify(&[&crossed, &lab.asvk]), Err(ChainError::LeafField("subject")));
    // A leaf is no authority, whatever it is named, and another product's authority is none.
    let under_leaf = lab.leaf("SEV-VCEK", &lab.key, "SEV-VCEK", all());
    assert_eq!(lab.verify(&[&under_leaf, &vcek, lab.roots[0].ark]), Err(ChainError::Intermediate));
    let root = key_pair(&lab.root_key).unwrap();
    let key = key_pair(&lab.ask_key).unwrap();
    let milan = issue("ARK-Turin", "SEV-Milan", &key, &root, authority_extensions().unwrap()).unwrap();
    let leaf = lab.leaf("SEV-Milan", &lab.ask_key, "SEV-VCEK", all());
    assert_eq!(lab.verify(&[&leaf, &milan, lab.roots[0].ark]), Err(ChainError::Intermediate));
    let no_authority = issue("ARK-Turin", "SEV-Turin", &key, &root, Vec::new()).unwrap();
    assert_eq!(lab.verify(&[&vcek, &no_authority]), Err(ChainError::Intermediate));
}

#[test]
fn what_a_leaf_lacks_is_named() {
    let lab = Lab::new();
    let vcek = |extensions| lab.leaf("SEV-Turin", &lab.ask_key, "SEV-VCEK", extensions);
    let missing = |extensions| lab.verify(&[&vcek(extensions)]).unwrap_err();
    assert_eq!(missing(tcb()), ChainError::LeafField("chip identity"));
    assert_eq!(missing(with(tcb(), chip(&[7; 9]))), ChainError::LeafField("chip identity"));
    assert_eq!(missing(with(tcb(), chip(&[7; 64]))), ChainError::LeafField("chip identity"));
    for (i, what) in ["FMC version", "boot loader version", "TEE version", "SNP version", "microcode version"]
        .into_iter()
        .enumerate()
    {
        let mut extensions = with(tcb(), chip(&[7; 8]));
        extensions.remove(i);
        assert_eq!(missing(extensions), ChainError::LeafField(what));
    }
    // As some certificates have it: wrapped in an OCTET STRING.
    let wrapped = vcek(with(tcb(), chip(&[&[4, 8], [7; 8].as_slice()].concat())));
    assert!(lab.verify(&[&wrapped]).is_ok());
    // The built-in roots know nothing of these.
    assert_eq!(Chain::verify(&[&wrapped]), Err(ChainError::UnknownRoot));
}
