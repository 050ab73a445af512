//! SVG drawings of a [`Report`]: response times, CPU cost, one burst in close-up, parallel jobs.

use super::report::{ArmReport, ExampleReport, Report};
use super::{Arm, ParallelJob};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

const SIZE: (u32, u32) = (960, 560);

/// Colours that can be told apart by everybody (after Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 120, 0),
    RGBColor(0, 0, 0),
];

/// A drawing that could not be made.
#[derive(Debug, Error)]
pub enum PlotError {
    /// The file cannot be written.
    #[error("cannot write {path}; choose a folder that can be written: {reason}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The drawing library refuses.
    #[error("cannot draw {what}: {reason}")]
    Draw {
        /// The drawing.
        what: &'static str,
        /// What it says.
        reason: String,
    },
}

type Drawing = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes `response-time.svg`, `cpu-cost.svg`, and where the report has them `burst.svg` and `parallel-job.svg` into
/// `folder`, which is created. Gives the files written.
///
/// # Errors
/// If a file cannot be written.
pub fn write_svgs(report: &Report, folder: &Path) -> Result<Vec<PathBuf>, PlotError> {
    let failed = |path: &Path, error: std::io::Error| PlotError::Write {
        path: path.to_path_buf(),
        reason: error.to_string(),
    };
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let mut drawings = vec![
        ("response-time", svg("response-time", |area| response_times(report, area))?),
        ("cpu-cost", svg("cpu-cost", |area| cpu_cost(report, area))?),
    ];
    if let Some(example) = &report.example {
        drawings.push(("burst", svg("burst", |area| burst(example, area))?));
    }
    if report.parallel.len() > 1 {
        drawings.push(("parallel-job", svg("parallel-job", |area| parallel(&report.parallel, area))?));
    }
    let mut written = Vec::new();
    for (name, text) in drawings {
        let path = folder.join(name).with_extension("svg");
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
        written.push(path);
    }
    Ok(written)
}

/// The text of one drawing.
fn svg(what: &'static str, draw: impl FnOnce(&Area<'_>) -> Drawing) -> Result<String, PlotError> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let refused = |error: &dyn std::fmt::Display| PlotError::Draw { what, reason: error.to_string() };
        area.fill(&WHITE).map_err(|error| refused(&error))?;
        draw(&area).map_err(|error| refused(&error))?;
        area.present().map_err(|error| refused(&error))?;
    }
    Ok(text)
}

fn subtitle(report: &Report) -> String {
    format!(
        "{} CVMs on {} cores, {} tasks, {:.0} core-seconds of work, seed {}",
        report.cvms, report.scenario.cores, report.tasks, report.work_core_s, report.scenario.seed
    )
}

/// The title, and below it a smaller line; gives the rest of the area.
fn titled<'a>(area: &Area<'a>, title: &str, below: &str) -> Result<Area<'a>, Box<dyn std::error::Error>> {
    let rest = area.titled(title, ("sans-serif", 22))?;
    Ok(rest.titled(below, ("sans-serif", 14))?)
}

/// A line with an entry in the legend.
fn line<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'_>, Cartesian2d<X, Y>>,
    points: impl IntoIterator<Item = (X::ValueType, Y::ValueType)>,
    title: &str,
    colour: RGBColor,
) -> Drawing
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
    X::ValueType: Clone + 'static,
    Y::ValueType: Clone + 'static,
{
    chart
        .draw_series(LineSeries::new(points, colour.stroke_width(2)))
        .map_err(|error| error.to_string())?
        .label(title)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
    Ok(())
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// The colour of an arm, the same in all drawings.
fn arm_colour(arm: Arm) -> RGBColor {
    colour(match arm {
        Arm::Nacre => 0,
        Arm::StaticP95 => 1,
        Arm::StaticEqual => 2,
        Arm::Hotplug => 3,
        Arm::Sampled { interval_ms: 0..1000 } => 4,
        Arm::Sampled { interval_ms: 1000 } => 5,
        Arm::Sampled { .. } => 6,
        Arm::BootPerBurst => 7,
    })
}

fn legend<'a, 'b: 'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Drawing
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
{
    chart
        .configure_series_labels()
        .position(position)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .legend_area_size(30)
        .margin(10)
        .draw()
        .map_err(|error| error.to_string())?;
    Ok(())
}

/// How many nines a percentile has: the x axis on which 90, 99 and 99.9 are equally far apart.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

fn response_times(report: &Report, area: &Area<'_>) -> Drawing {
    let area = titled(area, "Response time of tasks, by percentile", &subtitle(report))?;
    let values = || report.arms.iter().flat_map(|arm| arm.curve.iter().map(|point| point.1));
    let low = values().fold(f64::MAX, f64::min).max(0.01);
    let high = values().fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .margin_right(40)
        .x_label_area_size(46)
        .y_label_area_size(74)
        .build_cartesian_2d(0.0..4.0, (low * 0.8..high * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(5)
        .x_desc("percentile of tasks")
        .y_desc("response time (ms, logarithmic)")
        .x_label_formatter(&|x: &f64| match x.round() as i32 {
            0 => "0 %".into(),
            1 => "90 %".into(),
            2 => "99 %".into(),
            3 => "99.9 %".into(),
            _ => "99.99 %".into(),
        })
        .y_label_formatter(&|y| number(*y))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE)
        .draw()?;
    for arm in report.arms.iter().rev() {
        let points = arm.curve.iter().map(|&(percentile, ms)| (nines(percentile).min(4.0), ms.max(low)));
        line(&mut chart, points, &arm.title, arm_colour(arm.arm))?;
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// A number with as many digits as its size deserves.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        format!("{value:.2}")
    }
}

fn cpu_cost(report: &Report, area: &Area<'_>) -> Drawing {
    let area = titled(area, "CPU time per CPU time of work", &subtitle(report))?;
    let work = report.work_core_s.max(1e-9);
    let most =
        report.arms.iter().map(|arm| arm.reserved_core_s.max(arm.busy_core_s) / work).fold(1.0, f64::max);
    let titles: Vec<String> = report.arms.iter().map(|arm| arm.title.clone()).collect();
    let count = titles.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(74)
        .build_cartesian_2d(-0.5..count - 0.5, (0.5..most * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(titles.len().max(2))
        .x_label_formatter(&|x| {
            let exact = (x - x.round()).abs() < 0.01 && *x > -0.1;
            titles.get(x.round() as usize).filter(|_| exact).cloned().unwrap_or_default()
        })
        .x_desc("how CPUs come to CVMs")
        .y_desc("core-seconds per core-second of work (log.)")
        .y_label_formatter(&|y| number(*y))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 12))
        .light_line_style(WHITE)
        .draw()?;
    type Value = fn(&ArmReport) -> f64;
    let kinds: [(&str, Value, f64, RGBColor); 2] = [
        ("reserved: at the CVMs' disposal", |arm| arm.reserved_core_s, -0.36, COLOURS[0]),
        ("burnt: work and overhead", |arm| arm.busy_core_s, 0.02, COLOURS[1]),
    ];
    for (title, value, left, colour) in kinds {
        let bars = report.arms.iter().zip(0..).map(|(arm, index)| {
            let x = f64::from(index) + left;
            Rectangle::new([(x, 0.5), (x + 0.34, (value(arm) / work).max(0.5))], colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(title)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 22, y + 5)], colour.filled()));
        let labels = report.arms.iter().zip(0..).map(|(arm, index)| {
            let ratio = value(arm) / work;
            let place = (f64::from(index) + left + 0.02, ratio.max(0.5) * 1.13);
            let digits = if ratio < 2.0 { 3 } else { 1 };
            Text::new(format!("{ratio:.digits$}"), place, ("sans-serif", 12))
        });
        chart.draw_series(labels)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// The corners of a staircase that ends at `end`.
fn stairs(steps: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let mut points = Vec::with_capacity(2 * steps.len());
    let mut level = 0.0;
    for &(at, next) in steps {
        points.push((at, level));
        points.push((at, next));
        level = next;
    }
    points.push((end, level));
    points
}

fn burst(example: &ExampleReport, area: &Area<'_>) -> Drawing {
    let below = format!("CVM {} around the largest burst; what it could use at once is grey", example.cvm);
    let area = titled(area, "Demand and granted cores", &below)?;
    let shown = [Arm::Nacre, Arm::StaticP95, Arm::Hotplug, Arm::Sampled { interval_ms: 1000 }];
    let from = example.demand.first().map_or(0.0, |step| step.0).min(example.to_s - 0.001);
    let from = (from * 10.0).floor() / 10.0;
    let peak = example.demand.iter().map(|step| step.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(from..example.to_s, 0.0..peak * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("time (s)")
        .y_desc("cores")
        .x_label_formatter(&|x| format!("{x:.1}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE)
        .draw()?;
    let grey = RGBColor(190, 190, 190);
    chart
        .draw_series(AreaSeries::new(stairs(&example.demand, example.to_s), 0.0, grey.mix(0.6)))?
        .label("demand")
        .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 22, y + 5)], grey.filled()));
    for granted in example.granted.iter().rev().filter(|granted| shown.contains(&granted.arm)) {
        let points = stairs(&granted.steps, example.to_s);
        line(&mut chart, points, &granted.arm.title(), arm_colour(granted.arm))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

fn parallel(jobs: &[ParallelJob], area: &Area<'_>) -> Drawing {
    let ideal = jobs.first().map_or(0.0, |job| job.ideal_s);
    let below =
        format!("{ideal:.0} s on all workers is ideal; sampled arms begin with one vCPU, mean over phases");
    let area = titled(area, "One parallel job: what a late decision costs", &below)?;
    let most = jobs.iter().flat_map(|job| &job.arms).map(|arm| arm.over_ideal).fold(1.0, f64::max);
    let last = jobs.iter().map(|job| f64::from(job.workers)).fold(2.0, f64::max);
    let first = jobs.iter().map(|job| f64::from(job.workers)).fold(last - 1.0, f64::min);
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d((first..last * 1.02).log_scale().base(2.0), (0.9..most * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("workers (logarithmic)")
        .y_desc("time over ideal time (logarithmic)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.1}"))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE)
        .draw()?;
    let arms = jobs.first().map_or(0, |job| job.arms.len());
    for index in 0..arms {
        let points =
            || jobs.iter().filter_map(|job| Some((f64::from(job.workers), job.arms.get(index)?.over_ideal)));
        let title = jobs.first().and_then(|job| job.arms.get(index)).map_or("", |arm| &arm.title);
        line(&mut chart, points(), title, colour(index))?;
        chart.draw_series(points().map(|point| Circle::new(point, 4, colour(index).filled())))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}
