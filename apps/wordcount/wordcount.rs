//! wordcount: an ordinary Rust program (std collections, file and directory reading, formatting, threads none).
//! `wordcount DIR` reads every file below DIR, counts words in a HashMap, prints the 20 most frequent ones and a summary,
//! and writes the complete list to DIR/words.tsv. Its exit code is 0, or 1 when something can't be read.
use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

struct Count {
    times: usize,
    files: BTreeSet<PathBuf>,
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    files_below(dir, &mut files)?;
    files.sort();
    let mut counts: HashMap<String, Count> = HashMap::new();
    let mut total = 0;
    for file in &files {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {}", file.display(), e))?;
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            let count = counts
                .entry(word.to_lowercase())
                .or_insert_with(|| Count { times: 0, files: BTreeSet::new() });
            count.times += 1;
            count.files.insert(file.clone());
            total += 1;
        }
    }
    let mut order: Vec<(&String, &Count)> = counts.iter().collect();
    order.sort_by(|a, b| b.1.times.cmp(&a.1.times).then(a.0.cmp(b.0)));
    for (word, count) in order.iter().take(20) {
        let share = 100.0 * count.times as f64 / total as f64;
        println!("{:<16} {:>6} {:>6.2} %  in {} files", word, count.times, share, count.files.len());
    }
    let mean = order.iter().map(|(w, c)| w.len() * c.times).sum::<usize>() as f64 / total.max(1) as f64;
    println!("{} words, {} different, mean length {:.3}, {} files", total, order.len(), mean, files.len());
    let mut list = String::new();
    for (word, count) in &order {
        writeln!(list, "{}\t{}", word, count.times)?;
    }
    fs::write(dir.join("words.tsv"), list)?;
    Ok(())
}

fn main() {
    let dir = env::args().nth(1).unwrap_or_else(|| "/data".to_string());
    if let Err(error) = run(Path::new(&dir)) {
        eprintln!("wordcount: {}", error);
        process::exit(1);
    }
}
