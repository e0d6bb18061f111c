//! The log of one attempt on its way to the archive: two compressed files in a directory of its own.
//!
//! The directory goes with this value. The next start removes what a killed worker left, as with every directory of a job.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::excerpt::Excerpt;
use crate::clock::Epoch;
use crate::event::Event;
use crate::log_record::LogRecord;
use crate::state::JobDirectory;

/// The file for people.
const TEXT: &str = "text";

/// The file for programs.
const RECORDS: &str = "records";

/// A log that is being written.
#[derive(Debug)]
pub(super) struct Spool {
    excerpt: Excerpt,
    files: Files,
    directory: JobDirectory,
}

#[derive(Debug)]
struct Files {
    text: BufWriter<GzEncoder<File>>,
    records: BufWriter<GzEncoder<File>>,
}

/// A log that is ready for its upload.
#[derive(Debug)]
pub(super) struct Closed {
    directory: JobDirectory,
}

/// A record with its time.
#[derive(Serialize)]
struct Timed<'r> {
    /// Milliseconds since 1970.
    at_ms: u64,
    #[serde(flatten)]
    record: &'r LogRecord,
}

/// Whether a log has a record of the event.
pub(super) fn is_logged(event: &Event) -> bool {
    matches!(event, Event::StepOutput { .. }) || LogRecord::of(event).is_some()
}

impl Spool {
    /// Makes both files. The log keeps `max_bytes` of output whole.
    pub(super) fn open(directory: JobDirectory, max_bytes: usize) -> io::Result<Self> {
        let files = Files { text: create(&directory.join(TEXT))?, records: create(&directory.join(RECORDS))? };
        Ok(Self { excerpt: Excerpt::new(max_bytes), files, directory })
    }

    /// Writes what the log keeps of one event.
    pub(super) fn take_in(&mut self, event: &Event) -> io::Result<()> {
        let files = &mut self.files;
        self.excerpt.take_in(event, &mut |record| files.write(record))
    }

    /// Ends both files.
    pub(super) fn close(self) -> io::Result<Closed> {
        for file in [self.files.text, self.files.records] {
            file.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        }
        Ok(Closed { directory: self.directory })
    }
}

impl Files {
    fn write(&mut self, record: LogRecord) -> io::Result<()> {
        serde_json::to_writer(&mut self.records, &Timed { at_ms: Epoch::now().as_millis(), record: &record })?;
        self.records.write_all(b"\n")?;
        record.write_text(&mut self.text)
    }
}

impl Closed {
    pub(super) fn text(&self) -> PathBuf {
        self.directory.join(TEXT)
    }

    pub(super) fn records(&self) -> PathBuf {
        self.directory.join(RECORDS)
    }

    /// Removes both files without blocking the runtime.
    pub(super) async fn remove(self) {
        self.directory.remove().await;
    }
}

/// The fastest level: the log is compressed while the build waits for its output to be read.
fn create(path: &Path) -> io::Result<BufWriter<GzEncoder<File>>> {
    Ok(BufWriter::new(GzEncoder::new(File::create_new(path)?, Compression::fast())))
}
