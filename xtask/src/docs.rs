//! Public items without docs. Fields and variants need none where their names are enough.

use std::path::Path;

use syn::visit::Visit;
use syn::{Attribute, Visibility};

use crate::tree;

/// Returns every public item, method and trait method without docs.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in tree::CRATES.iter().filter(|name| root.join(name).join("src/lib.rs").exists()) {
        for file in tree::sources(root, name) {
            let path = root.join(name).join("src").join(&file);
            let Some(parsed) =
                std::fs::read_to_string(path).ok().and_then(|text| syn::parse_file(&text).ok())
            else {
                found.push(format!("{name}/src/{file}: does not parse"));
                continue;
            };
            let mut items = Items { found: Vec::new() };
            items.visit_file(&parsed);
            found
                .extend(items.found.into_iter().map(|item| format!("{name}/src/{file}: {item} has no docs")));
        }
    }
    found
}

struct Items {
    found: Vec<String>,
}

impl Items {
    fn item(&mut self, visibility: &Visibility, attributes: &[Attribute], name: &syn::Ident) {
        if matches!(visibility, Visibility::Public(_)) && !is_documented(attributes) {
            self.found.push(name.to_string());
        }
    }
}

fn is_documented(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("doc"))
}

impl<'ast> Visit<'ast> for Items {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.item(&item.vis, &item.attrs, &item.sig.ident);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.item(&item.vis, &item.attrs, &item.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.item(&item.vis, &item.attrs, &item.ident);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.item(&item.vis, &item.attrs, &item.ident);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.item(&item.vis, &item.attrs, &item.ident);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.item(&item.vis, &item.attrs, &item.sig.ident);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.item(&item.vis, &item.attrs, &item.ident);
        syn::visit::visit_item_trait(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if !is_documented(&item.attrs) {
            self.found.push(item.sig.ident.to_string());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg"));
        if !is_test {
            syn::visit::visit_item_mod(self, item);
        }
    }
}
