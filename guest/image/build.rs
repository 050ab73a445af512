//! Link arguments of the image: static, no C runtime, each segment on large pages of its own, agent statics apart.

fn main() {
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        // Below IMAGE_VA: nothing but the ELF headers lies there, and the launcher leaves them out.
        "-Wl,--image-base=0x200000",
        // One large page per segment at least: code and data are mapped with 2 MiB entries of their own permissions.
        "-Wl,-z,max-page-size=0x200000",
        "-Wl,-z,norelro",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        // The agent's statics (see src/agent.rs) on the first large page; everything behind it is the tenant's.
        "-Wl,--section-start=.agent=0x400000",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/arch/stub.S");
}
