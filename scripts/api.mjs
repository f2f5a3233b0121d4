// Prints the public items of a crate, one a line, from the JSON output of rustdoc.
//
//   node scripts/api.mjs FILE.json           the listing
//   node scripts/api.mjs --count FILE.json   the number of items of each kind
//
// An item is listed once, at its shortest public path; its other paths are `pub use` lines. Implementations of traits
// are listed and not counted; derived, automatic and blanket ones are not listed.
import { readFileSync } from "node:fs";

const count = process.argv[2] === "--count";
const doc = JSON.parse(readFileSync(process.argv[count ? 3 : 2], "utf8"));
const lines = [];
const kinds = new Map();

function unknown(what, value) {
  throw new Error(`${what} ${JSON.stringify(value).slice(0, 200)} is unknown (rustdoc format ${doc.format_version}): adapt scripts/api.mjs`);
}

// The kind and the content of an item or a type: rustdoc writes `{"kind": content}` or `"kind"`.
const open = (value) => (typeof value === "string" ? [value, null] : Object.entries(value)[0]);

function item(id) {
  const found = doc.index[id];
  return found && { ...found, kind: open(found.inner)[0], content: open(found.inner)[1] };
}

// --- types -------------------------------------------------------------------

function lifetime(name) {
  return name ? `${name} ` : "";
}

function constraint({ name, args: own, binding }) {
  const [kind, value] = open(binding);
  if (kind === "constraint") return `${name}${args(own)}: ${bounds(value)}`;
  if (kind !== "equality") unknown("constraint", binding);
  return `${name}${args(own)} = ${term(value)}`;
}

function term(value) {
  const [kind, content] = open(value);
  if (kind === "type") return type(content);
  if (kind === "constant") return content.expr;
  return unknown("term", value);
}

function args(value) {
  if (!value) return "";
  const [kind, content] = open(value);
  if (kind === "parenthesized") {
    return `(${content.inputs.map(type).join(", ")})${content.output ? ` -> ${type(content.output)}` : ""}`;
  }
  if (kind === "return_type_notation") return "(..)";
  if (kind !== "angle_bracketed") unknown("arguments", value);
  const all = content.args.map((one) => {
    const [which, inner] = open(one);
    if (which === "lifetime") return inner;
    if (which === "infer") return "_";
    return term(one);
  });
  all.push(...content.constraints.map(constraint));
  return all.length > 0 ? `<${all.join(", ")}>` : "";
}

const path = (value) => `${value.path}${args(value.args)}`;

function forAny(params) {
  return params.length > 0 ? `for<${params.map((param) => param.name).join(", ")}> ` : "";
}

function bound(value) {
  const [kind, content] = open(value);
  if (kind === "outlives") return content;
  if (kind === "use") return `use<${content.map((one) => open(one)[1]).join(", ")}>`;
  if (kind !== "trait_bound") unknown("bound", value);
  const modifier = { none: "", maybe: "?", maybe_const: "~const " }[content.modifier] ?? unknown("bound", value);
  return `${forAny(content.generic_params)}${modifier}${path(content.trait)}`;
}

const bounds = (all) => all.map(bound).join(" + ");

function header({ is_const, is_async, is_unsafe, abi }) {
  const [name] = open(abi);
  return `${is_const ? "const " : ""}${is_async ? "async " : ""}${is_unsafe ? "unsafe " : ""}${name === "Rust" ? "" : `extern "${name}" `}`;
}

function type(value) {
  const [kind, content] = open(value);
  switch (kind) {
    case "primitive": return content === "never" ? "!" : content;
    case "generic": return content;
    case "infer": return "_";
    case "resolved_path": return path(content);
    case "tuple": return `(${content.map(type).join(", ")}${content.length === 1 ? "," : ""})`;
    case "slice": return `[${type(content)}]`;
    case "array": return `[${type(content.type)}; ${content.len}]`;
    case "pat": return type(content.type);
    case "impl_trait": return `impl ${bounds(content)}`;
    case "raw_pointer": return `*${content.is_mutable ? "mut" : "const"} ${type(content.type)}`;
    case "borrowed_ref": {
      const inner = type(content.type);
      const grouped = /^(dyn|impl) .* \+ /.test(inner) ? `(${inner})` : inner;
      return `&${lifetime(content.lifetime)}${content.is_mutable ? "mut " : ""}${grouped}`;
    }
    case "dyn_trait": {
      const traits = content.traits.map((one) => `${forAny(one.generic_params)}${path(one.trait)}`);
      return `dyn ${[...traits, ...(content.lifetime ? [content.lifetime] : [])].join(" + ")}`;
    }
    case "function_pointer": {
      const { sig } = content;
      const output = sig.output ? ` -> ${type(sig.output)}` : "";
      return `${forAny(content.generic_params)}${header(content.header)}fn(${sig.inputs.map(([, one]) => type(one)).join(", ")})${output}`;
    }
    case "qualified_path": {
      const own = type(content.self_type);
      const trait = content.trait && content.trait.path !== "" ? path(content.trait) : null;
      const base = trait && !(own === "Self" && content.trait.args === null) ? `<${own} as ${trait}>` : own;
      return `${base}::${content.name}${args(content.args)}`;
    }
    default: return unknown("type", value);
  }
}

// --- generics ----------------------------------------------------------------

function generics({ params }) {
  const shown = params.flatMap(({ name, kind: value }) => {
    const [kind, content] = open(value);
    if (kind === "lifetime") {
      if (name.startsWith("'_")) return [];
      return [`${name}${content.outlives.length > 0 ? `: ${content.outlives.join(" + ")}` : ""}`];
    }
    if (kind === "const") return [`const ${name}: ${type(content.type)}${content.default ? ` = ${content.default}` : ""}`];
    if (kind !== "type") unknown("parameter", value);
    if (content.is_synthetic) return [];
    const own = content.bounds.length > 0 ? `: ${bounds(content.bounds)}` : "";
    return [`${name}${own}${content.default ? ` = ${type(content.default)}` : ""}`];
  });
  return shown.length > 0 ? `<${shown.join(", ")}>` : "";
}

function where({ where_predicates: predicates }) {
  const shown = predicates.map((value) => {
    const [kind, content] = open(value);
    if (kind === "bound_predicate") return `${forAny(content.generic_params)}${type(content.type)}: ${bounds(content.bounds)}`;
    if (kind === "lifetime_predicate") return `${content.lifetime}: ${content.outlives.join(" + ")}`;
    if (kind === "eq_predicate") return `${type(content.lhs)} = ${term(content.rhs)}`;
    return unknown("predicate", value);
  });
  return shown.length > 0 ? ` where ${shown.join(", ")}` : "";
}

function signature(name, { sig, generics: own, header: head }) {
  const inputs = sig.inputs.map(([input, value]) => {
    if (input !== "self") return `${input}: ${type(value)}`;
    const self = type(value);
    if (self === "Self") return "self";
    const short = /^&('\w+ )?(mut )?Self$/.exec(self);
    return short ? `&${short[1] ?? ""}${short[2] ?? ""}self` : `self: ${self}`;
  });
  const text = `${header(head)}fn ${name}${generics(own)}(${inputs.join(", ")})${sig.output ? ` -> ${type(sig.output)}` : ""}${where(own)}`;
  return text.includes("'async_trait") ? asWritten(text) : text;
}

// Undoes the macro `async_trait`, which adds lifetimes and boxes the future.
function asWritten(text) {
  const future = / -> (?:::core::pin::)?Pin<Box<dyn (?:::core::future::)?Future<Output = (.*)>(?: \+ [\w:]*Send)? \+ 'async_trait>>/;
  const output = future.exec(text);
  if (!output) return text;
  const [before, after] = text.split(output[0]);
  const predicates = after.replace(/^ where /, "").split(", ").filter((one) => one && !/'async_trait/.test(one));
  const plain = before
    .replace(/<((?:'(?:life\d+|async_trait)|'\w+|\w[^<>]*)(?:, )?)+>(?=\()/, (list) => {
      const kept = list.slice(1, -1).split(", ").filter((one) => !/^'(life\d+|async_trait)$/.test(one));
      return kept.length > 0 ? `<${kept.join(", ")}>` : "";
    })
    .replace(/'life\d+ /g, "")
    .replace(/<'life\d+>/g, "");
  const result = output[1] === "()" ? "" : ` -> ${output[1].replace(/'life\d+ /g, "")}`;
  return `async ${plain}${result}${predicates.length > 0 ? ` where ${predicates.join(", ")}` : ""}`;
}

// --- items -------------------------------------------------------------------

function print(kind, line) {
  kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  lines.push(line);
}

// The shortest public path of each item, then the first in alphabetical order.
const canonical = new Map();
const modules = [];

function children(module) {
  return module.content.items.flatMap((id) => {
    const child = item(id);
    if (!child) return [];
    if (child.kind !== "use") return [[child.name, child]];
    const { id: to, name, is_glob: isGlob } = child.content;
    const target = to === null ? null : item(to);
    if (!target) return [[name, child]];
    if (!isGlob) return [[name, target]];
    if (target.kind === "module") return children(target);
    if (target.kind === "enum") return target.content.variants.map((one) => [item(one)?.name, item(one)]).filter(([, one]) => one);
    return [[name, child]];
  });
}

function survey() {
  let level = [[item(doc.root), item(doc.root).name]];
  canonical.set(doc.root, item(doc.root).name);
  while (level.length > 0) {
    const next = [];
    for (const [module, at] of level) {
      const own = new Map();
      for (const [name, child] of children(module)) {
        if (!own.has(`${name} ${child.id}`)) own.set(`${name} ${child.id}`, [name, child]);
      }
      modules.push([at, [...own.values()]]);
      for (const [name, child] of [...own.values()].sort(([a], [b]) => (a < b ? -1 : 1))) {
        if (canonical.has(child.id) || child.kind === "use") continue;
        canonical.set(child.id, `${at}::${name}`);
        if (child.kind === "module") next.push([child, `${at}::${name}`]);
      }
    }
    level = next;
  }
}

function isPublic(child) {
  return child.visibility === "public" || child.visibility === "default";
}

function field(at, id, name) {
  const child = id === null ? null : item(id);
  if (child && isPublic(child)) print("field", `pub ${at}${name ?? child.name}: ${type(child.content)}`);
}

function fields(at, shape) {
  const [kind, content] = open(shape);
  if (kind === "tuple") content.forEach((id, position) => field(`${at}::`, id, position));
  if (kind === "plain" || kind === "struct") content?.fields.forEach((id) => field(`${at}::`, id));
}

function associated(at, id, visibility) {
  const child = item(id);
  if (!child) return;
  const value = child.content;
  switch (child.kind) {
    case "function":
      print("method", `${visibility}${signature(`${at}::${child.name}`, value)}`);
      break;
    case "assoc_const":
      print("constant", `${visibility}const ${at}::${child.name}: ${type(value.type)}`);
      break;
    case "assoc_type":
      print("type", `${visibility}type ${at}::${child.name}${generics(value.generics)}${value.bounds.length > 0 ? `: ${bounds(value.bounds)}` : ""}${value.type ? ` = ${type(value.type)}` : ""}${where(value.generics)}`);
      break;
    default:
      unknown("associated item", child.inner);
  }
}

function implementations(at, ids) {
  for (const id of ids) {
    const found = item(id);
    if (!found || found.content.is_synthetic || found.content.blanket_impl) continue;
    const { trait, items, generics: own, is_negative: isNegative } = found.content;
    if (!trait) {
      for (const one of items) {
        const child = item(one);
        if (child?.visibility === "public") associated(at, one, "pub ");
      }
    } else if (!found.attrs.some((attribute) => JSON.stringify(attribute).includes("automatically_derived"))) {
      lines.push(`impl${generics(own)} ${isNegative ? "!" : ""}${path(trait)} for ${at}${where(own)}`);
    }
  }
}

function list(at, child) {
  const value = child.content;
  const open_ended = child.attrs.some((attribute) => JSON.stringify(attribute).includes("non_exhaustive")) ? "#[non_exhaustive] " : "";
  switch (child.kind) {
    case "module":
      print("module", `pub mod ${at}`);
      break;
    case "struct":
    case "union":
      print("type", `${open_ended}pub ${child.kind} ${at}${generics(value.generics)}${where(value.generics)}`);
      if (child.kind === "union") value.fields.forEach((id) => field(`${at}::`, id));
      else fields(at, value.kind);
      implementations(at, value.impls);
      break;
    case "enum":
      print("type", `${open_ended}pub enum ${at}${generics(value.generics)}${where(value.generics)}`);
      for (const id of value.variants) {
        const variant = item(id);
        if (!variant) continue;
        print("variant", `pub ${at}::${variant.name}`);
        fields(`${at}::${variant.name}`, variant.content.kind);
      }
      implementations(at, value.impls);
      break;
    case "trait":
      print("trait", `pub ${value.is_unsafe ? "unsafe " : ""}trait ${at}${generics(value.generics)}${value.bounds.length > 0 ? `: ${bounds(value.bounds)}` : ""}${where(value.generics)}`);
      for (const id of value.items) {
        const one = item(id);
        const provided = one?.kind === "function" && one.content.has_body ? "provided " : "";
        associated(at, id, `pub ${provided}`);
      }
      break;
    case "function":
      print("function", `pub ${signature(at, value)}`);
      break;
    case "constant":
      print("constant", `pub const ${at}: ${type(value.type)}`);
      break;
    case "static":
      print("constant", `pub static ${value.is_mutable ? "mut " : ""}${at}: ${type(value.type)}`);
      break;
    case "type_alias":
      print("type", `pub type ${at}${generics(value.generics)} = ${type(value.type)}${where(value.generics)}`);
      break;
    case "macro":
    case "proc_macro":
      print("macro", `pub macro ${at}!`);
      break;
    case "use":
      print("re-export", `pub use ${at} = ${value.source}${value.is_glob ? "::*" : ""}`);
      break;
    case "variant":
    case "extern_crate":
    case "primitive":
      break;
    default:
      unknown("item", child.inner);
  }
}

survey();
list(item(doc.root).name, item(doc.root));
for (const [at, own] of modules) {
  for (const [name, child] of own) {
    const here = `${at}::${name}`;
    const first = canonical.get(child.id);
    if (child.kind === "use" || first === here) list(here, child);
    else if (first) print("re-export", `pub use ${here} = ${first}`);
  }
}

if (count) {
  const total = [...kinds.values()].reduce((sum, one) => sum + one, 0);
  const each = [...kinds].sort(([a], [b]) => (a < b ? -1 : 1)).map(([kind, number]) => `${kind} ${number}`);
  console.log(`${total} (${each.join(", ")})`);
} else {
  // Sorted by path, so that the parts of a type stand together.
  const root = item(doc.root).name;
  const at = new RegExp(`(?:^| )(${root}(?:::\\w+)*)`);
  const key = (line) => `${at.exec(line)?.[1] ?? ""} ${line}`;
  const compare = (a, b) => (key(a) < key(b) ? -1 : 1);
  console.log([...new Set(lines)].sort(compare).join("\n"));
}
