//! What is done to the state of one vCPU from outside, and to what it is told about its processor. KVM offers more than
//! the hardware of a real confidential VM would let a host do; what the guest can't notice there either is not done here
//! (registers and private memory).

use crate::plan::{Attack, LaunchLie, Rng};
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use nacre_abi::layout::{AGENT_VA, AREAS_VA, HEAP_VA, IMAGE_VA, SHARED_VA, VCPU_VA};

/// The time stamp counter's MSR (Intel SDM vol. 4).
const IA32_TSC: u32 = 0x10;
const PAGE_FAULT: u8 = 14;
/// Vectors that push an error code (Intel SDM vol. 3, 6.3.1).
const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];

/// One change of a vCPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// An exception; `address` is for page faults.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error: Option<u32>,
        /// What CR2 holds.
        address: Option<u64>,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt with this vector.
    Interrupt(u8),
    /// The time stamp counter moves by so many cycles.
    Time(i64),
}

/// An injection for an attack.
pub fn of(attack: Attack, rng: &mut Rng) -> Injection {
    let exception = |vector: u8, rng: &mut Rng| {
        let error = WITH_ERROR_CODE
            .contains(&vector)
            .then(|| if rng.chance(700) { rng.below(32) as u32 } else { rng.next() as u32 });
        Injection::Exception { vector, error, address: (vector == PAGE_FAULT).then(|| address(rng)) }
    };
    match attack {
        Attack::PageFault => exception(PAGE_FAULT, rng),
        Attack::InvalidOpcode => exception(6, rng),
        Attack::Division => exception(0, rng),
        Attack::Nmi => Injection::Nmi,
        Attack::Interrupt => Injection::Interrupt(rng.between(32, 255) as u8),
        Attack::Time => {
            let cycles = 1i64 << rng.between(10, 43);
            Injection::Time(if rng.chance(500) { cycles } else { -cycles })
        }
        // Not 2: KVM has its own call for it.
        _ => exception(
            rng.pick(&[1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21, 28, 29, 30]),
            rng,
        ),
    }
}

/// An address somewhere where the guest has, may have, or never has something.
fn address(rng: &mut Rng) -> u64 {
    let base = rng.pick(&[
        0,
        IMAGE_VA,
        AGENT_VA,
        VCPU_VA,
        SHARED_VA,
        HEAP_VA,
        AREAS_VA,
        AREAS_VA,
        AREAS_VA,
        0xffff_8000_0000_0000,
    ]);
    let reach = rng.pick(&[12, 21, 24, 33, 40]);
    if rng.chance(50) { rng.next() } else { base.wrapping_add(rng.below(1 << reach)) }
}

impl Injection {
    /// Does it, to a vCPU that is not in the guest.
    ///
    /// # Errors
    /// KVM's.
    pub fn apply(self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        match self {
            Injection::Exception { vector, error, address } => {
                if let Some(address) = address {
                    let mut registers = vcpu.get_sregs()?;
                    registers.cr2 = address;
                    vcpu.set_sregs(&registers)?;
                }
                let mut events = vcpu.get_vcpu_events()?;
                events.exception.injected = 1;
                events.exception.nr = vector;
                events.exception.has_error_code = u8::from(error.is_some());
                events.exception.error_code = error.unwrap_or(0);
                vcpu.set_vcpu_events(&events)
            }
            Injection::Nmi => vcpu.nmi(),
            Injection::Interrupt(vector) => {
                let mut events = vcpu.get_vcpu_events()?;
                events.interrupt.injected = 1;
                events.interrupt.nr = vector;
                vcpu.set_vcpu_events(&events)
            }
            Injection::Time(cycles) => {
                let now = read_tsc(vcpu)?;
                let entry = kvm_msr_entry {
                    index: IA32_TSC,
                    data: now.wrapping_add_signed(cycles),
                    ..Default::default()
                };
                let msrs = Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(22))?;
                vcpu.set_msrs(&msrs)
                    .and_then(|done| if done == 1 { Ok(()) } else { Err(kvm_ioctls::Error::new(1)) })
            }
        }
    }
}

/// The vCPU's time stamp counter, as KVM has it.
///
/// # Errors
/// KVM's.
pub fn read_tsc(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: IA32_TSC, ..Default::default() }])
        .map_err(|_| kvm_ioctls::Error::new(22))?;
    vcpu.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().first().map_or(0, |entry| entry.data))
}

/// Feature bits of CPUID that code compiled for this machine is likely to need: leaf, register (1 = EBX, 2 = ECX), bit.
const NEEDED: [(u32, usize, u32); 5] = [(1, 2, 28), (1, 2, 20), (1, 2, 12), (7, 1, 5), (7, 1, 8)];

/// Changes what the guest is told about its processor.
pub fn lie_about_processor(lie: LaunchLie, cpuid: &mut CpuId, xcr0: &mut u64, rng: &mut Rng) {
    let needed = rng.pick(&NEEDED);
    for entry in cpuid.as_mut_slice() {
        let (function, index) = (entry.function, entry.index);
        let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        match lie {
            LaunchLie::MissingFeature if function == needed.0 && index == 0 => {
                let [_, ebx, ecx, _] = registers;
                *if needed.1 == 1 { ebx } else { ecx } &= !(1 << needed.2);
            }
            LaunchLie::ExtraFeatures if (function == 7 && index <= 1) || function == 1 => {
                registers.into_iter().skip(1).for_each(|register| *register |= rng.next() as u32);
            }
            // Not the leaf that says how large the extended state is, which KVM reads itself.
            LaunchLie::RandomCpuid if function != 0xd => {
                registers.into_iter().for_each(|register| *register = rng.next() as u32);
            }
            _ => {}
        }
    }
    match lie {
        LaunchLie::Xcr0WithoutAvx512 => *xcr0 &= 7,
        LaunchLie::Xcr0Minimal => *xcr0 &= 3,
        _ => {}
    }
}
