//! Reads a README as tests see it: headings, tables, and blocks of code, each with what the comment
//! before it says of how it is run.
//!
//! ```text
//! <!-- run: sql -->
//! ```
//!
//! Nobody sees these comments who reads the rendered page.

use std::fs;
use std::path::Path;

/// How a block or a table of commands is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// In a shell of the machine that has the containers.
    Host {
        /// What is there when it begins.
        scene: Scene,
        /// How it ends.
        exit_code: i32,
    },
    /// In the server of the container `db`, as SQL.
    Sql,
    /// As lines of the container's `postgresql.conf`.
    Configuration,
    /// In a container that has no server, as the server's user.
    Bare,
    /// A table of commands in the container, as the server's user.
    Commands,
    /// A table of commands behind `docker exec db`.
    Everyday,
    /// With `compose.yaml`.
    Compose,
    /// Builds an image.
    Build,
    /// A command of `./dev`, which CI calls by itself.
    Dev,
    /// What the block before it printed.
    Printed,
    /// Something that looks different every time.
    Example,
}

/// What is there when a block of the host begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// What the block before has left.
    AsItIs,
    /// No container, no volume, and an empty remote.
    Anew,
    /// No container and no volume, as on another machine.
    Elsewhere,
}

impl Way {
    /// What a comment says, without its ends; `None` if it says nothing of that.
    ///
    /// # Panics
    ///
    /// If it says something that is not known.
    fn parse(comment: &str) -> Option<Way> {
        let way = match comment.split_once(':').map(|(kind, words)| (kind, words.trim()))? {
            ("shows", "what the command before printed") => Way::Printed,
            ("shown", "an example") => Way::Example,
            ("run", words) => {
                let mut words = words.split(',').map(str::trim);
                match words.next().unwrap_or_default() {
                    "sql" => Way::Sql,
                    "conf" => Way::Configuration,
                    "bare" => Way::Bare,
                    "commands" => Way::Commands,
                    "everyday" => Way::Everyday,
                    "compose" => Way::Compose,
                    "build" => Way::Build,
                    "dev" => Way::Dev,
                    "host" => {
                        let (mut scene, mut exit_code) = (Scene::AsItIs, 0);
                        for word in words.by_ref() {
                            match word.strip_prefix("exit code ").map(str::parse) {
                                Some(Ok(code)) => exit_code = code,
                                _ if word == "anew" => scene = Scene::Anew,
                                _ if word == "elsewhere" => scene = Scene::Elsewhere,
                                _ => panic!("unknown: <!-- {comment} -->"),
                            }
                        }
                        Way::Host { scene, exit_code }
                    }
                    _ => panic!("unknown: <!-- {comment} -->"),
                }
            }
            _ => return None,
        };
        Some(way)
    }

    /// Whether it is a table's.
    pub fn is_of_table(&self) -> bool {
        matches!(self, Way::Commands | Way::Everyday)
    }
}

/// A block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its first word.
    pub line: usize,
    /// How it is run, if anything says so.
    pub way: Option<Way>,
    /// `sh`, `sql` or nothing.
    pub language: String,
    /// The code.
    pub text: String,
}

/// A table, without the line below its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The line of its head.
    pub line: usize,
    /// How the commands in its first column are run.
    pub way: Option<Way>,
    /// Cells, of the head first.
    pub rows: Vec<Vec<String>>,
}

/// A README.
#[derive(Debug, Default)]
pub struct Readme {
    /// Levels and texts.
    pub headings: Vec<(usize, String)>,
    /// Blocks of code.
    pub blocks: Vec<Block>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Everything outside of blocks of code.
    pub prose: String,
}

impl Readme {
    /// Reads one by its name in the repository.
    ///
    /// # Panics
    ///
    /// If it cannot be read, or a comment in it is not known.
    pub fn read(name: &str) -> Readme {
        let path = repository().join(name);
        let text = fs::read_to_string(&path);
        Readme::parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn parse(text: &str) -> Readme {
        let mut readme = Readme::default();
        let mut way = None;
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
        while let Some((at, line)) = lines.next() {
            if let Some(language) = line.strip_prefix("```") {
                let mut text = String::new();
                for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
                    text.push_str(line);
                    text.push('\n');
                }
                let language = language.to_string();
                readme.blocks.push(Block { line: at + 1, way: way.take(), language, text });
                continue;
            }
            readme.prose.push_str(line);
            readme.prose.push('\n');
            let level = line.bytes().take_while(|byte| *byte == b'#').count();
            if let Some(comment) = line.strip_prefix("<!-- ").and_then(|it| it.strip_suffix(" -->"))
            {
                way = Way::parse(comment);
            } else if level > 0 {
                readme.headings.push((level, line[level..].trim().to_string()));
                way = None;
            } else if line.starts_with('|') {
                let mut rows = vec![cells(line)];
                while let Some((_, row)) = lines.next_if(|(_, line)| line.starts_with('|')) {
                    readme.prose.push_str(row);
                    readme.prose.push('\n');
                    rows.push(cells(row));
                }
                rows.remove(1);
                readme.tables.push(Table { line: at, way: way.take(), rows });
            } else {
                way = None;
            }
        }
        readme
    }

    /// What is written as code within the text, in order.
    pub fn inline_code(&self) -> Vec<String> {
        // What is within a comment is nobody's, and a line's end is a blank.
        let lines = self.prose.lines().filter(|line| !line.starts_with("<!--"));
        let lines: Vec<&str> = lines.collect();
        let paragraphs = lines.split(|line| line.is_empty()).map(|lines| lines.join(" "));
        paragraphs
            .flat_map(|it| it.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>())
            .collect()
    }
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|');
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    inner.split('|').map(|cell| cell.trim().to_string()).collect()
}

/// Where this repository is.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
