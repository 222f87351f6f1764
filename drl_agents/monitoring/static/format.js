// Numbers, times and elements. Everything that comes from a file goes in as text, never as markup.

export const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export function number(value, digits = 4) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-3)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, size >= 1 ? Math.floor(Math.log10(size)) + 1 : 0) });
}

export function money(value, sign = false) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  const decimals = size >= 1 || size === 0 ? 2 : Math.min(16, 3 - Math.floor(Math.log10(size)));
  const mark = value < 0 ? "−" : sign ? "+" : "";
  return `${mark}$${size.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals })}`;
}

// What a holding is worth, to the cent: the rest of a sale is a billionth of a share, and worth nothing.
export const cents = (value) => (known(value) && Math.abs(value) < 0.005 ? money(0) : money(value));

export function percent(fraction, sign = false, digits = 2) {
  if (!known(fraction)) return DASH;
  const mark = fraction < 0 ? "−" : sign ? "+" : "";
  return `${mark}${Math.abs(100 * fraction).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })} %`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const two = (n) => String(Math.floor(n)).padStart(2, "0");
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${two((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

// An ISO time, or seconds since 1970, as UTC: "2025-06-01 12:05".
export function clock(when) {
  const time = typeof when === "number" ? new Date(when * 1000) : new Date(when);
  if (Number.isNaN(time.getTime())) return typeof when === "string" && when ? when : DASH;
  return time.toISOString().slice(0, 16).replace("T", " ");
}

export const gib = (bytes) => (known(bytes) ? (bytes / 2 ** 30).toFixed(1) : DASH);
export const short = (identity) => (identity || "").slice(0, 12) || DASH;
export const setting = (value) =>
  typeof value === "number" ? number(value, value >= 0.9 && value < 1 ? 5 : 3) : typeof value === "string" ? value : JSON.stringify(value);

export const at = (id) => document.getElementById(id);

export function el(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== "") made.textContent = text;
  return made;
}

// Writes only what differs: a page that is left alone stays selectable, and is not laid out anew.
export function write(node, text, kind) {
  if (node.textContent !== text) node.textContent = text;
  if (kind !== undefined && node.className !== kind) node.className = kind;
}

// columns: [heading, "num" | "text" | "soft" | ""]; a cell is text or [text, class].
export function table(caption, columns, rows, mark = () => "") {
  const made = el("table");
  made.setAttribute("aria-label", caption);
  const head = el("tr");
  for (const [name, kind] of columns) {
    const cell = el("th", name, kind === "num" ? "num" : "");
    cell.scope = "col";
    head.append(cell);
  }
  made.append(el("thead"), el("tbody"));
  made.tHead.append(head);
  for (const row of rows) {
    const line = el("tr", "", mark(row));
    row.forEach((value, i) => {
      const [text, kind] = Array.isArray(value) ? value : [value, ""];
      line.append(el("td", text, `${columns[i][1]} ${kind}`.trim()));
    });
    made.tBodies[0].append(line);
  }
  return made;
}

export function pairs(node, entries) {
  node.replaceChildren(...entries.flatMap(([name, value, title]) => {
    const shown = el("dd", value);
    if (title) shown.title = title;
    return [el("dt", name), shown];
  }));
}

// entries: [name, value, small print, class]; the tiles stay, only their text changes.
export function figures(node, entries) {
  while (node.children.length > entries.length) node.lastChild.remove();
  while (node.children.length < entries.length) {
    const tile = el("div");
    tile.append(el("dt"), el("dd"), el("small"));
    node.append(tile);
  }
  entries.forEach(([name, value, small = "", kind = "", share], i) => {
    const [term, shown, print] = node.children[i].children;
    write(term, name);
    write(shown, value, kind);
    write(print, small);
    print.title = shown.title = `${value} ${small}`.trim();
    let bar = node.children[i].querySelector("progress");
    if (share === undefined) return bar?.remove();
    if (!bar) {
      bar = el("progress");
      bar.setAttribute("aria-label", name);
      node.children[i].append(bar);
    }
    bar.value = share;
  });
}
