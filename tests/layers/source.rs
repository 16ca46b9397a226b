//! One source file, seen as the code that ships: names with the lines they stand on, without comments, strings and
//! tests.

use std::collections::BTreeMap;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Names in a row, joined by `::`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) line: usize,
    /// From the root of the crate (`["crate", …]`) where it begins with `crate`, `super` or `self`; else as written.
    pub(crate) path: Vec<String>,
    /// It stands in something that anyone may use: an item or a field that is plainly `pub`.
    pub(crate) public: bool,
}

/// A file of `src/`.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the package, such as `src/model/exit.rs`.
    pub(crate) file: String,
    pub(crate) names: Vec<Name>,
    /// Lines that ship, comments and blank lines included.
    pub(crate) lines: usize,
    /// The module it is, from the root of the crate.
    pub(crate) module: Vec<String>,
    /// Modules it declares for tests alone; they are files of their own.
    pub(crate) test_modules: Vec<Vec<String>>,
}

impl Source {
    /// Reads a file's text, or says why it is no Rust.
    pub(crate) fn read(file: &str, text: &str) -> Result<Self, String> {
        let tokens = TokenStream::from_str(text).map_err(|error| format!("{file}: {error}"))?;
        let module = module_of(file);
        let mut reader =
            Reader { module: module.clone(), names: Vec::new(), test_lines: 0, test_modules: Vec::new() };
        reader.items(tokens);
        let Reader { names, test_lines, test_modules, .. } = reader;
        let lines = text.lines().count() - test_lines;
        Ok(Self { file: file.to_owned(), names, lines, module, test_modules })
    }

    /// The room it belongs to: the first name below `src/`.
    pub(crate) fn room(&self) -> &str {
        let below = self.file.strip_prefix("src/").unwrap_or(&self.file);
        let first = below.split('/').next().unwrap_or(below);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// What the crate's root publishes under a shorter path, by name: the room it comes from.
    pub(crate) fn reexports(&self) -> BTreeMap<String, String> {
        let of_rooms = self.names.iter().filter(|name| name.public && name.path.len() >= 2);
        let pairs = of_rooms.filter_map(|name| {
            let from_root = name.path.first().is_some_and(|first| first == "crate");
            let room = if from_root { &name.path[1] } else { &name.path[0] };
            Some((name.path.last()?.clone(), room.clone()))
        });
        pairs.collect()
    }
}

/// `src/runtime/linux/mod.rs` is the module `crate::runtime::linux`.
fn module_of(file: &str) -> Vec<String> {
    let below = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let parts = below.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main"));
    std::iter::once("crate").chain(parts).map(str::to_owned).collect()
}

struct Reader {
    /// The module that is being read.
    module: Vec<String>,
    names: Vec<Name>,
    test_lines: usize,
    test_modules: Vec<Vec<String>>,
}

impl Reader {
    /// Reads a run of items, or of anything else that stands between two braces.
    fn items(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut public = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(hash) if hash.as_char() == '#' && is_test_attribute(tokens.get(at + 1)) => {
                    let end = item_end(&tokens, at);
                    self.test_module(&tokens[at..=end]);
                    self.test_lines += tokens[end].span().end().line - tokens[at].span().start().line + 1;
                    at = end + 1;
                    continue;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    let narrowed = matches!(tokens.get(at + 1), Some(TokenTree::Group(group))
                        if group.delimiter() == Delimiter::Parenthesis && narrows(group));
                    public = !narrowed;
                }
                TokenTree::Ident(word) if word == "use" => {
                    at = self.use_tree(&tokens, at + 1, &[], public);
                    public = false;
                    continue;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                        (tokens.get(at + 1), tokens.get(at + 2))
                    {
                        self.module.push(name.to_string());
                        self.items(body.stream());
                        self.module.pop();
                        at += 3;
                        public = false;
                        continue;
                    }
                }
                TokenTree::Ident(_) => {
                    let (path, after) = path(&tokens, at);
                    self.name(&tokens[at], path, public);
                    at = after;
                    continue;
                }
                TokenTree::Group(group) => {
                    // What follows a signature in braces is the item's inside, and no longer its face.
                    let outside = group.delimiter() != Delimiter::Brace;
                    self.inside(group, public && outside);
                    public &= outside;
                }
                TokenTree::Punct(mark) if matches!(mark.as_char(), ';' | ',') => public = false,
                TokenTree::Punct(mark) if mark.as_char() == '\'' => at += 1, // the name of a lifetime follows
                _ => {}
            }
            at += 1;
        }
    }

    /// Notes `mod name;` among the tokens of an item.
    fn test_module(&mut self, item: &[TokenTree]) {
        if let [.., TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(_)] = item
            && word == "mod"
        {
            let mut module = self.module.clone();
            module.push(name.to_string());
            self.test_modules.push(module);
        }
    }

    fn inside(&mut self, group: &Group, public: bool) {
        let known = self.names.len();
        self.items(group.stream());
        self.names[known..].iter_mut().for_each(|name| name.public |= public);
    }

    /// Reads what follows `use`, from `at` on, below the prefix; says where it ends.
    fn use_tree(&mut self, tokens: &[TokenTree], at: usize, prefix: &[String], public: bool) -> usize {
        let (mut at, mut path, mut line) = (at, prefix.to_vec(), None);
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Ident(word) if word == "as" => at += 1, // the new name is not looked at
                TokenTree::Ident(word) => {
                    path.push(word.to_string());
                    line = Some(token);
                }
                TokenTree::Group(group) => {
                    let branches: Vec<TokenTree> = group.stream().into_iter().collect();
                    let mut branch = 0;
                    while branch < branches.len() {
                        branch = self.use_tree(&branches, branch, &path, public) + 1;
                    }
                    line = None;
                }
                TokenTree::Punct(mark) if mark.as_char() == '*' => line = Some(token),
                TokenTree::Punct(mark) if matches!(mark.as_char(), ';' | ',') => break,
                _ => {}
            }
            at += 1;
        }
        if let Some(token) = line {
            self.name(token, path, public);
        }
        at
    }

    fn name(&mut self, first: &TokenTree, path: Vec<String>, public: bool) {
        let line = first.span().start().line;
        self.names.push(Name { line, path: self.spelled_out(path), public });
    }

    /// Spells out `self` and `super`.
    fn spelled_out(&self, path: Vec<String>) -> Vec<String> {
        if !path.first().is_some_and(|first| first == "self" || first == "super") || path.len() < 2 {
            return path;
        }
        let mut whole = self.module.clone();
        for name in path {
            match name.as_str() {
                "self" => {}
                "super" => drop(whole.pop()),
                _ => whole.push(name),
            }
        }
        whole
    }
}

/// The names joined by `::` from `at` on, and where they end.
fn path(tokens: &[TokenTree], at: usize) -> (Vec<String>, usize) {
    let mut names = vec![tokens[at].to_string()];
    let mut end = at + 1;
    let is_colon =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    while is_colon(end) && is_colon(end + 1) {
        let Some(TokenTree::Ident(name)) = tokens.get(end + 2) else { break };
        names.push(name.to_string());
        end += 3;
    }
    (names, end)
}

/// `#[test]`, or `#[cfg(…)]` that asks for `test`.
fn is_test_attribute(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(attribute)) = token else { return false };
    let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
    match (tokens.first(), tokens.get(1)) {
        (Some(TokenTree::Ident(word)), None) => word == "test",
        (Some(TokenTree::Ident(word)), Some(TokenTree::Group(condition))) if word == "cfg" => {
            asks_for_test(condition.stream())
        }
        _ => false,
    }
}

/// `test` and `all(test, …)` ask for it; `any(test, …)` and `not(test)` also ship without.
fn asks_for_test(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    tokens.iter().enumerate().any(|(at, token)| match (token, tokens.get(at + 1)) {
        (TokenTree::Ident(word), Some(TokenTree::Group(inner))) => {
            word == "all" && asks_for_test(inner.stream())
        }
        (TokenTree::Ident(word), _) => word == "test",
        _ => false,
    })
}

/// Where the item with an attribute at `at` ends: at its braces, or at `;`.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        _ => false,
    };
    (at..tokens.len()).find(|at| ends(&tokens[*at])).unwrap_or(tokens.len() - 1)
}

/// `pub(crate)` and the like.
fn narrows(group: &Group) -> bool {
    let first = group.stream().into_iter().next();
    matches!(first, Some(TokenTree::Ident(word)) if ["crate", "super", "self", "in"].iter().any(|name| word == name))
}
