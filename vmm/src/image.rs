//! Guest images: ELF files of one shape, built into this crate.

use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::{IMAGE_VA, IMAGE_VA_END};
use nacre_mm::entry::Perms;
use object::Endianness;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// The image for use.
pub static RELEASE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nacre-guest"));
/// The image with debugging messages; it measures differently.
pub static DEBUG: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nacre-guest-debug"));

/// Why a file is no guest image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not a 64-bit little-endian ELF executable.
    #[error("the guest image is not a 64-bit ELF executable")]
    NotElf,
    /// A segment is outside of the image's addresses, overlaps another or lies outside of the file.
    #[error("segment {0} of the guest image is out of place")]
    Segment(usize),
    /// Nothing to execute at the entry point.
    #[error("the guest image has no code at its entry point")]
    Entry,
}

/// A part of the image that has permissions of its own and large pages of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it is in guest-virtual memory.
    pub address: u64,
    /// Its length there; what the file does not fill is zero.
    pub bytes: u64,
    /// What the file has for it.
    pub content: &'a [u8],
    /// What the guest may do with it.
    pub perms: Perms,
}

impl Segment<'_> {
    /// First address of its first large page.
    pub fn first_page(&self) -> u64 {
        self.address & !(LARGE_PAGE_BYTES - 1)
    }

    /// Length of its large pages in bytes.
    pub fn page_bytes(&self) -> u64 {
        (self.address + self.bytes).next_multiple_of(LARGE_PAGE_BYTES) - self.first_page()
    }
}

/// A guest image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImage<'a> {
    /// Its segments, in order of addresses, none sharing a large page.
    pub segments: Vec<Segment<'a>>,
    /// Where every vCPU begins.
    pub entry: u64,
}

impl<'a> GuestImage<'a> {
    /// Reads an ELF file. Segments below the image's addresses (its headers) are left out.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn parse(file: &'a [u8]) -> Result<GuestImage<'a>, ImageError> {
        let header = FileHeader64::<Endianness>::parse(file).map_err(|_| ImageError::NotElf)?;
        let endian = header.endian().map_err(|_| ImageError::NotElf)?;
        if endian != Endianness::Little {
            return Err(ImageError::NotElf);
        }
        let headers = header.program_headers(endian, file).map_err(|_| ImageError::NotElf)?;
        let mut segments: Vec<Segment<'a>> = Vec::new();
        let mut next_free = IMAGE_VA;
        for (number, header) in headers.iter().enumerate() {
            let wrong = ImageError::Segment(number);
            let (address, bytes) = (header.p_vaddr(endian), header.p_memsz(endian));
            if header.p_type(endian) != PT_LOAD || address < IMAGE_VA || bytes == 0 {
                continue;
            }
            let content = header.data(endian, file).map_err(|()| wrong)?;
            let fits = address.checked_add(bytes).is_some_and(|end| end <= IMAGE_VA_END)
                && content.len() as u64 <= bytes;
            if !fits || address < next_free {
                return Err(wrong);
            }
            let flags = header.p_flags(endian);
            let perms = match (flags & PF_W != 0, flags & PF_X != 0) {
                (true, true) => return Err(wrong),
                (true, false) => Perms::ReadWrite,
                (false, true) => Perms::ReadExecute,
                (false, false) => Perms::Read,
            };
            let segment = Segment { address, bytes, content, perms };
            next_free = segment.first_page() + segment.page_bytes();
            segments.push(segment);
        }
        let entry = header.e_entry(endian);
        let is_code = |segment: &Segment<'_>| {
            segment.perms == Perms::ReadExecute
                && (segment.address..segment.address + segment.bytes).contains(&entry)
        };
        if segments.iter().any(is_code) { Ok(GuestImage { segments, entry }) } else { Err(ImageError::Entry) }
    }

    /// Bytes of large pages it takes.
    pub fn page_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::page_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_images_have_the_expected_shape() {
        for file in [RELEASE, DEBUG] {
            let image = GuestImage::parse(file).unwrap();
            let perms: Vec<_> = image.segments.iter().map(|segment| segment.perms).collect();
            assert_eq!(perms, [Perms::ReadWrite, Perms::Read, Perms::ReadExecute, Perms::ReadWrite]);
            assert_eq!(image.segments[0].address, IMAGE_VA, "the agent's statics come first");
            assert!(image.page_bytes() <= 16 << 20);
        }
        assert_ne!(RELEASE, DEBUG);
    }

    /// What the agent has must be in its own section: everything in `.data` and `.bss` moves with the tenant.
    #[test]
    fn no_static_of_the_agent_is_in_the_tenant_arena() {
        const AGENT_MODULES: [&str; 8] = [
            "nacre_guest6memory",
            "nacre_guest5sched",
            "nacre_guest8handover",
            "nacre_guest4link",
            "nacre_guest6phases",
            "nacre_guest4arch5clock",
            "nacre_guest5vcpu",
            "nacre_guest10dispatcher",
        ];
        const TENANT_STATICS: [&str; 6] = ["4HEAP", "5AREAS", "5TASKS", "8PROGRAMS", "7RUNTIME", "5FREED"];
        for file in [RELEASE, DEBUG] {
            let header = FileHeader64::<Endianness>::parse(file).unwrap();
            let endian = header.endian().unwrap();
            let sections = header.sections(endian, file).unwrap();
            let symbols = sections.symbols(endian, file, object::elf::SHT_SYMTAB).unwrap();
            let (mut agent, mut tenant) = (0, 0);
            for symbol in symbols.iter().filter(|symbol| symbol.st_type() == object::elf::STT_OBJECT) {
                let name = std::str::from_utf8(symbols.symbol_name(endian, symbol).unwrap()).unwrap();
                let Some(section) =
                    symbols.symbol_section(endian, symbol, object::SymbolIndex(0)).ok().flatten()
                else {
                    continue;
                };
                let section = sections.section(section).unwrap();
                let section = std::str::from_utf8(sections.section_name(endian, section).unwrap()).unwrap();
                let writable = matches!(section, ".data" | ".bss");
                let ours = ["nacre_guest", "nacre_mm", "nacre_wval"].iter().any(|part| name.contains(part));
                let of_agent = name.contains("nacre_mm")
                    || name.contains("nacre_wval")
                    || AGENT_MODULES.iter().any(|module| name.contains(module));
                assert!(
                    !(writable && ours && of_agent),
                    "{name} is in {section}: declare it with agent_static!"
                );
                agent += usize::from(section == ".agent");
                tenant += usize::from(writable && TENANT_STATICS.iter().any(|known| name.contains(known)));
            }
            assert!(
                agent >= 10 && tenant >= TENANT_STATICS.len(),
                "{agent} agent, {tenant} tenant statics found"
            );
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(GuestImage::parse(b""), Err(ImageError::NotElf));
        assert_eq!(GuestImage::parse(b"\x7fELF"), Err(ImageError::NotElf));
        assert!(GuestImage::parse(&RELEASE[..4096]).is_err());
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(changes in prop::collection::vec((0usize..1024, any::<u8>()), 1..20), cut in 0usize..4096) {
            let mut file = RELEASE[..RELEASE.len().min(2 << 20)].to_vec();
            for (at, byte) in changes {
                file[at] = byte;
            }
            file.truncate(file.len() - cut);
            if let Ok(image) = GuestImage::parse(&file) {
                for segment in image.segments {
                    prop_assert!(segment.address >= IMAGE_VA && segment.address + segment.bytes <= IMAGE_VA_END);
                }
            }
        }
    }
}
