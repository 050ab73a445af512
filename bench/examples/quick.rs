use nacre_bench::elastic::{Options, run};
use std::time::Duration;
struct P;
impl nacre_bench::Progress for P {
    fn step(&self, _: &str) {}
}
fn n(k: &str) -> usize {
    std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}
fn main() {
    let o = Options {
        wake_rounds: n("WR"),
        wakes: 400,
        arrivals: n("AR").max(20),
        idle: Duration::from_millis(10),
        duty_rounds: 0,
        parallel_rounds: 0,
        parallel_work: Duration::from_secs(1),
        tenant_rounds: n("TR"),
        reclaims: n("RC"),
    };
    let r = run(&o, &P).unwrap();
    for row in &r.report.rows {
        println!("{}", serde_json::to_string(row).unwrap());
    }
}
