// Writes sizes, counts and times of a page in the language and the time zone of the reader.

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte", "petabyte"];
const counts = new Intl.NumberFormat();
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const ages = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
const STEPS = [["second", 60], ["minute", 60], ["hour", 24], ["day", 30], ["month", 12], ["year", Infinity]];

export function formatSize(bytes) {
  let value = bytes;
  let place = 0;
  while (value >= 999.5 && place + 1 < UNITS.length) {
    value /= 1000;
    place += 1;
  }
  const digits = place === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const fixed = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(undefined, { style: "unit", unit: UNITS[place], unitDisplay: place === 0 ? "long" : "short", ...fixed }).format(value);
}

export function formatCount(number) {
  return counts.format(number);
}

export function formatMoment(moment) {
  return moments.format(moment);
}

function formatAge(moment) {
  let value = (moment - Date.now()) / 1000;
  for (const [unit, length] of STEPS) {
    if (Math.abs(value) < length) {
      return ages.format(Math.round(value), unit);
    }
    value /= length;
  }
  return "";
}

export function localise(root) {
  for (const element of root.querySelectorAll("data.size")) {
    element.textContent = formatSize(Number(element.value));
    element.title = `${formatCount(Number(element.value))} bytes`;
  }
  for (const element of root.querySelectorAll("data.count")) {
    element.textContent = formatCount(Number(element.value));
  }
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const isAge = element.closest(".ages") !== null;
    element.textContent = isAge ? formatAge(moment) : formatMoment(moment);
    element.title = formatMoment(moment);
  }
}

localise(document);
