//! Plots of a run: what a spin limit buys (latency) and what it costs (CPU), for each kind of arrivals.

use super::{ElasticReport, SpinPoint};
use crate::BenchError;
use plotters::prelude::*;
use std::path::{Path, PathBuf};

const SIZE: (u32, u32) = (900, 520);

/// Writes all plots.
pub(super) fn write(report: &ElasticReport, directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
    std::fs::create_dir_all(directory).map_err(BenchError::system("the directory for the plots"))?;
    let plots = [
        ("spin-poisson.svg", "Arrivals: 1,000/s, Poisson", &report.poisson),
        ("spin-bursts.svg", "Bursts of 10 every 10 ms: requests 2 to 10", &report.bursts),
    ];
    plots
        .into_iter()
        .map(|(file, title, points)| {
            let path = directory.join(file);
            draw(&path, title, points).map_err(|error| BenchError::System {
                what: "a plot",
                error: std::io::Error::other(error.to_string()),
            })?;
            Ok(path)
        })
        .collect()
}

/// Median and 99th percentile against the worker's CPU, one point for each spin limit.
fn draw(path: &Path, title: &str, points: &[SpinPoint]) -> Result<(), Box<dyn std::error::Error>> {
    let microseconds = |ns: f64| ns / 1e3;
    let highest = points.iter().map(|point| microseconds(point.later_ns.p99)).fold(10.0, f64::max);
    let busiest = points.iter().map(|point| point.worker_cpu_percent).fold(10.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..busiest * 1.1, (0.1..highest * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("CPU of the worker, percent of one CPU")
        .y_desc("arrival to first instruction, microseconds")
        .draw()?;
    let p50: Vec<_> =
        points.iter().map(|point| (point.worker_cpu_percent, microseconds(point.later_ns.median))).collect();
    let p99: Vec<_> =
        points.iter().map(|point| (point.worker_cpu_percent, microseconds(point.later_ns.p99))).collect();
    for (name, colour, series) in [("p50", BLUE, &p50), ("p99", RED, &p99)] {
        chart
            .draw_series(LineSeries::new(series.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(series.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
    }
    chart.draw_series(points.iter().zip(&p50).map(|(point, at)| {
        let star = if point.default { " (default)" } else { "" };
        Text::new(format!("{} us{star}", point.spin_limit_us), *at, ("sans-serif", 13))
    }))?;
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::Summary;

    #[test]
    fn a_plot_names_its_axes_and_points() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let latency = Summary::of(&[1e3, 2e3, 9e4]).unwrap();
        let point = |spin_limit_us, default| SpinPoint {
            spin_limit_us,
            default,
            latency_ns: latency,
            later_ns: latency,
            worker_cpu_percent: spin_limit_us as f64 / 10.0,
        };
        draw(&path, "Title", &[point(0, false), point(150, true)]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in ["Title", "percent of one CPU", "microseconds", "p50", "p99", "150 us (default)"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
