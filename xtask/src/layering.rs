//! Dependencies between the modules of each crate: upward in chat-core, and cycles in all crates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Item, UseTree};

use crate::tree;

/// Layers of chat-core, lowest first. A module may use modules of lower layers only.
const LAYERS: [&[&str]; 8] = [
    &["proto", "mutant"],
    &["model"],
    &["backend"],
    &["codec"],
    &["memory", "wire", "delivery"],
    &["session", "replica"],
    &["gateway"],
    &["conformance", "sim"],
];

/// The only modules of chat-core that may use a module at the edge.
const EDGES: [(&str, &[&str]); 2] =
    [("wire", &["gateway", "sim"]), ("codec", &["wire", "memory", "conformance", "sim"])];

/// An edge from one top-level module to another, with a place where it is made.
type Edges = BTreeMap<(String, String), String>;

/// Returns every upward dependency and every cycle.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in tree::CRATES {
        let edges = edges(root, name);
        if name == "chat-core" {
            found.extend(edges.iter().filter_map(|((from, to), at)| {
                let why = broken_rule(from, to)?;
                Some(format!("{name}: {from} -> {to} {why} ({at})"))
            }));
        }
        found
            .extend(cycles(&edges).into_iter().map(|cycle| format!("{name}: cycle of {}", cycle.join(", "))));
    }
    found
}

fn broken_rule(from: &str, to: &str) -> Option<String> {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let (Some(lower), Some(upper)) = (layer(to), layer(from)) else {
        return Some("uses a module without a layer".to_owned());
    };
    if lower >= upper {
        return Some("goes up".to_owned());
    }
    let edge = EDGES.iter().find(|(edge, users)| *edge == to && !users.contains(&from));
    edge.map(|(edge, users)| format!("uses {edge}, which only {} may use", users.join(" and ")))
}

fn edges(root: &Path, name: &str) -> Edges {
    let sources = tree::sources(root, name);
    let parsed: Vec<(String, syn::File)> = sources
        .iter()
        .filter_map(|file| {
            let text = std::fs::read_to_string(root.join(name).join("src").join(file)).ok()?;
            Some((file.clone(), syn::parse_file(&text).ok()?))
        })
        .collect();
    let roots = ["lib.rs", "main.rs"];
    let modules: BTreeSet<String> = sources
        .iter()
        .filter(|file| !roots.contains(&file.as_str()))
        .filter_map(|file| Some(file.split(['/', '.']).next()?.to_owned()))
        .collect();
    let exports = exports(&parsed, &modules);
    let mut edges = Edges::new();
    for (file, parsed) in parsed.iter().filter(|(file, _)| !roots.contains(&file.as_str())) {
        let own: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        let mut paths = Paths { own: own.clone(), found: Vec::new() };
        paths.visit_file(parsed);
        for path in paths.found {
            let Some(first) = path.first() else { continue };
            let to = if modules.contains(first) { Some(first) } else { exports.get(first) };
            if let Some(to) = to.filter(|to| **to != own[0]) {
                edges
                    .entry((own[0].clone(), to.clone()))
                    .or_insert_with(|| format!("{file}: {}", path.join("::")));
            }
        }
    }
    edges
}

/// Returns the names that `lib.rs` exports, and the module of each.
fn exports(parsed: &[(String, syn::File)], modules: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (_, file) in parsed.iter().filter(|(file, _)| file == "lib.rs") {
        for item in &file.items {
            let Item::Use(item) = item else { continue };
            for path in flatten(&item.tree) {
                let path: Vec<String> =
                    path.into_iter().filter(|part| part != "crate" && part != "self").collect();
                if let (Some(first), Some(last)) = (path.first(), path.last()) {
                    let module = exports.get(first).unwrap_or(first).clone();
                    if modules.contains(&module) && path.len() > 1 {
                        exports.insert(last.clone(), module);
                    }
                }
            }
        }
    }
    exports
}

fn flatten(tree: &UseTree) -> Vec<Vec<String>> {
    match tree {
        UseTree::Path(path) => flatten(&path.tree)
            .into_iter()
            .map(|rest| std::iter::once(path.ident.to_string()).chain(rest).collect())
            .collect(),
        UseTree::Name(name) => vec![vec![name.ident.to_string()]],
        UseTree::Rename(rename) => vec![vec![rename.ident.to_string()]],
        UseTree::Glob(_) => vec![Vec::new()],
        UseTree::Group(group) => group.items.iter().flat_map(flatten).collect(),
    }
}

/// Collects paths that begin with `crate` or `super`, relative to the root of the crate.
struct Paths {
    /// The module of the file.
    own: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let mut module = self.own.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => {
                module.clear();
                rest = &path[1..];
            }
            Some("super") => {
                while rest.first().is_some_and(|part| part == "super") {
                    module.pop();
                    rest = &rest[1..];
                }
            }
            _ => return,
        }
        module.extend(rest.iter().cloned());
        self.found.push(module);
    }

    /// Macros are not parsed: their tokens are searched for paths.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 || path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.add(&path);
                    (path, colons) = (Vec::new(), 0);
                    match other {
                        TokenTree::Group(group) => self.add_tokens(group.stream()),
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        _ => {}
                    }
                }
            }
        }
        self.add(&path);
    }
}

/// Whether an item is compiled for unit tests only.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().contains("test"))
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            self.own.push(item.ident.to_string());
            syn::visit::visit_item_mod(self, item);
            self.own.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for path in flatten(&item.tree) {
            self.add(&path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&parts);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.add_tokens(item.tokens.clone());
        syn::visit::visit_macro(self, item);
    }
}

/// Returns the sets of modules that depend on each other.
fn cycles(edges: &Edges) -> Vec<Vec<String>> {
    let reaches = |from: &str, to: &str| {
        let (mut open, mut seen) = (vec![from.to_owned()], BTreeSet::new());
        while let Some(at) = open.pop() {
            for ((_, next), _) in edges.iter().filter(|((start, _), _)| *start == at) {
                if next == to {
                    return true;
                }
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        false
    };
    let modules: BTreeSet<&String> = edges.keys().flat_map(|(from, to)| [from, to]).collect();
    let mut cycles: Vec<Vec<String>> = Vec::new();
    for module in &modules {
        if cycles.iter().any(|cycle| cycle.contains(module)) || !reaches(module, module) {
            continue;
        }
        let cycle = modules.iter().filter(|other| reaches(module, other) && reaches(other, module));
        cycles.push(cycle.map(|module| (*module).clone()).collect());
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> ((String, String), String) {
        ((from.to_owned(), to.to_owned()), String::new())
    }

    #[test]
    fn upward_dependencies_and_uses_of_an_edge_are_found() {
        assert_eq!(broken_rule("delivery", "backend"), None);
        assert!(broken_rule("backend", "delivery").is_some());
        assert!(broken_rule("session", "replica").is_some(), "side by side");
        assert!(broken_rule("session", "wire").is_some(), "the gateway alone encodes frames");
        assert!(broken_rule("session", "unheard_of").is_some());
    }

    #[test]
    fn cycles_are_found_once() {
        let edges = Edges::from([edge("a", "b"), edge("b", "c"), edge("c", "a"), edge("c", "d")]);
        assert_eq!(cycles(&edges), [["a", "b", "c"]]);
        assert!(cycles(&Edges::from([edge("a", "b"), edge("b", "c")])).is_empty());
    }

    #[test]
    fn paths_of_uses_types_and_macros_are_found_but_not_those_of_tests() {
        let file = syn::parse_file(
            "use crate::{one::A, two}; fn f() -> super::three::B { vec![crate::four::C] }
             #[cfg(test)] mod tests { use crate::five::D; }",
        );
        let mut paths = Paths { own: vec!["x".into(), "y".into()], found: Vec::new() };
        paths.visit_file(&file.unwrap());
        let mut first: Vec<_> = paths.found.iter().map(|path| path.join("::")).collect();
        first.sort();
        assert_eq!(first, ["four::C", "one::A", "two", "x::three::B"]);
    }
}
