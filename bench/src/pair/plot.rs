//! The latency that clients saw around migrations, as a picture: one panel for each migration, on the same scale.

use super::timeline::Bucket;
use crate::BenchError;
use plotters::prelude::*;
use std::path::Path;

const WIDTH: u32 = 900;
const PANEL: u32 = 320;
/// Shorter ones are drawn as this, in milliseconds: both scales of latency are logarithmic.
const LEAST_MS: f64 = 0.05;

/// One migration.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What it says above.
    pub title: String,
    /// From the order: when tasks began to be parked, and when they ran again, in milliseconds.
    pub pause_ms: (f64, f64),
    /// What clients saw.
    pub buckets: Vec<Bucket>,
}

/// Writes it.
///
/// # Errors
/// If the file can't be written.
pub fn write(path: &Path, panels: &[Panel]) -> Result<(), BenchError> {
    draw(path, panels).map_err(|error| BenchError::System {
        what: "a plot",
        error: std::io::Error::other(error.to_string()),
    })
}

fn draw(path: &Path, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (WIDTH, PANEL * panels.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let all = || panels.iter().flat_map(|panel| &panel.buckets);
    let last = all().map(|bucket| bucket.at_ms).fold(1.0, f64::max) / 1e3;
    let first = all().map(|bucket| bucket.at_ms).fold(0.0, f64::min) / 1e3;
    let most = all().filter_map(|bucket| bucket.max_ms).fold(10.0, f64::max) * 1.5;
    for (area, panel) in root.split_evenly((panels.len().max(1), 1)).iter().zip(panels) {
        let mut chart = ChartBuilder::on(area)
            .caption(&panel.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(first..last, (LEAST_MS..most).log_scale())?;
        chart.configure_mesh().x_desc("seconds from the order to migrate").y_desc("latency, ms").draw()?;
        let (from, to) = (panel.pause_ms.0 / 1e3, panel.pause_ms.1 / 1e3);
        let pause = Rectangle::new([(from, LEAST_MS), (to, most)], RED.mix(0.2).filled());
        chart
            .draw_series(std::iter::once(pause))?
            .label("no task runs")
            .legend(|(x, y)| Rectangle::new([(x, y - 4), (x + 20, y + 4)], RED.mix(0.2).filled()));
        type Series = (&'static str, RGBColor, fn(&Bucket) -> Option<f64>);
        let series: [Series; 2] =
            [("longest", MAGENTA, |bucket| bucket.max_ms), ("half took less", BLUE, |bucket| bucket.p50_ms)];
        for (name, colour, value) in series {
            // Where nothing was answered there is no line.
            let runs = panel.buckets.split(|bucket| value(bucket).is_none()).filter(|run| !run.is_empty());
            for (index, run) in runs.enumerate() {
                let points =
                    run.iter().filter_map(|bucket| Some((bucket.at_ms / 1e3, value(bucket)?.max(LEAST_MS))));
                let drawn = chart.draw_series(LineSeries::new(points, colour.stroke_width(1)))?;
                if index == 0 {
                    drawn.label(name).legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2))
                    });
                }
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_drawn_also_without_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("latency.svg");
        let bucket = |at_ms, max_ms| Bucket { at_ms, per_second: 1.0, p50_ms: max_ms, max_ms };
        let buckets = vec![bucket(-1000.0, Some(0.01)), bucket(0.0, None), bucket(5.0, Some(300.0))];
        let panel = Panel { title: "hybrid".into(), pause_ms: (1.0, 2.0), buckets };
        write(&path, &[panel.clone(), Panel { buckets: Vec::new(), ..panel }]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg") && text.contains("hybrid") && text.contains("no task runs"));
        assert!(write(Path::new("/nowhere/latency.svg"), &[]).is_err());
    }
}
