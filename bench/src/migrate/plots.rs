//! Plots of a run: downtime by size for each mode, and what the service wrote around the hand-over.

use super::Measured;
use crate::BenchError;
use crate::summary::Summary;
use plotters::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SIZE: (u32, u32) = (900, 520);
/// Colours of the modes, in the order in which they are met.
const COLOURS: [RGBColor; 4] = [BLUE, GREEN, MAGENTA, RED];

/// Writes all plots.
pub(super) fn write(migrations: &[Measured], directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
    std::fs::create_dir_all(directory).map_err(BenchError::system("the directory for the plots"))?;
    let failed = |error: Box<dyn std::error::Error>| BenchError::System {
        what: "a plot",
        error: std::io::Error::other(error.to_string()),
    };
    let mut files = Vec::new();
    let mut networks: Vec<String> = migrations.iter().map(|one| one.network.to_string()).collect();
    networks.dedup();
    for network in networks {
        let of: Vec<&Measured> = migrations.iter().filter(|one| one.network.to_string() == network).collect();
        let file = network.replace([' ', '/'], "-").to_lowercase();
        let path = directory.join(format!("downtime-{file}.svg"));
        downtime(&path, &network, &of).map_err(failed)?;
        files.push(path);
        let path = directory.join(format!("hand-over-{file}.svg"));
        hand_over(&path, &network, &of).map_err(failed)?;
        files.push(path);
    }
    Ok(files)
}

fn modes<'m>(migrations: &[&'m Measured]) -> Vec<&'m str> {
    let mut modes = Vec::new();
    for one in migrations {
        if !modes.contains(&one.mode) {
            modes.push(one.mode);
        }
    }
    modes
}

/// The median downtime of each mode against the size, both on logarithmic scales.
fn downtime(path: &Path, network: &str, migrations: &[&Measured]) -> Result<(), Box<dyn std::error::Error>> {
    let mib = |one: &Measured| (one.bytes >> 20) as f64;
    let sizes = migrations.iter().map(|one| mib(one));
    let (least, most) =
        sizes.fold((f64::MAX, 1.0), |(least, most): (f64, f64), size| (least.min(size), most.max(size)));
    let longest = migrations.iter().map(|one| one.downtime_ns / 1e6).fold(10.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Downtime over {network}"), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), (0.1..longest * 2.0).log_scale())?;
    chart.configure_mesh().x_desc("memory that is written to, MiB").y_desc("downtime, ms").draw()?;
    for (mode, colour) in modes(migrations).into_iter().zip(COLOURS) {
        let mut by_size: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for one in migrations.iter().filter(|one| one.mode == mode) {
            by_size.entry(one.bytes).or_default().push(one.downtime_ns / 1e6);
        }
        let points: Vec<(f64, f64)> = by_size
            .iter()
            .filter_map(|(bytes, all)| Some(((bytes >> 20) as f64, Summary::of(all)?.median)))
            .collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(mode)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

/// Writes a second around the hand-over, of the largest memory, for each mode: the last migration of it.
fn hand_over(path: &Path, network: &str, migrations: &[&Measured]) -> Result<(), Box<dyn std::error::Error>> {
    let largest = migrations.iter().map(|one| one.bytes).max().unwrap_or(0);
    let shown: Vec<&Measured> = modes(migrations)
        .into_iter()
        .filter_map(|mode| migrations.iter().rev().find(|one| one.mode == mode && one.bytes == largest))
        .copied()
        .collect();
    let times = shown.iter().flat_map(|one| &one.timeline).map(|point| point.0);
    let (first, last) = times.fold((0.0, 1.0), |(first, last): (f64, f64), at| (first.min(at), last.max(at)));
    let most = shown.iter().flat_map(|one| &one.timeline).map(|point| point.1).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("The hand-over of {} MiB over {network}", largest >> 20), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(first..last, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("ms from the last sign of life at the source")
        .y_desc("writes a second, in pieces of 5 ms")
        .draw()?;
    for (one, colour) in shown.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(one.timeline.iter().copied(), colour.stroke_width(2)))?
            .label(one.mode)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
