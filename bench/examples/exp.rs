use nacre_bench::{host::binary_form, programs::COMPUTE};
fn main() {
    // Variations of the engine through public wasmtime; imports stubbed by trapping is not possible, so use HostEngine::with.
    let mk: Vec<(&str, wasmtime::Config)> = vec![
        ("same", nacre_engine::compiler::compiling_config(nacre_engine::CpuTarget::X86_64V3).unwrap()),
        ("same-noepoch", { let mut c = nacre_engine::compiler::compiling_config(nacre_engine::CpuTarget::X86_64V3).unwrap(); c.epoch_interruption(false); c }),
        ("defaults", wasmtime::Config::new()),
        ("defaults+epoch", { let mut c = wasmtime::Config::new(); c.epoch_interruption(true); c }),
    ];
    let engines: Vec<_> = mk.into_iter().map(|(n, c)| (n, nacre_bench::host::HostEngine::new(&c).unwrap())).collect();
    for p in COMPUTE {
        let _ = binary_form(p.source);
        let progs: Vec<_> = engines.iter().map(|(n, e)| (*n, e.load(p.source).unwrap())).collect();
        let mut s: Vec<Vec<f64>> = vec![vec![]; 4];
        for r in 0..8 { for i in nacre_bench::summary::order(r, 4) { s[i].push(progs[i].1.run(p.argv()).unwrap().cpu.as_secs_f64()*1e3); } }
        for (i, (n, _)) in progs.iter().enumerate() {
            let v = nacre_bench::summary::Summary::of(&s[i]).unwrap();
            println!("{} {n}: {:.0} ({:.0}..{:.0})", p.name, v.median, v.min, v.max);
        }
    }
}
