// Numbers and codes in people's words.

const NAMES = { none: "Plain", se: "SE", eca: "ECA", cbam: "CBAM" };
export const NOTES = {
  exif_rotated: "Turned upright, as its EXIF orientation says.",
  first_frame: "It is animated: the first frame was used.",
  reduced_to_8_bit: "Its 16 bits per colour were reduced to 8.",
  alpha_on_white: "Its see-through parts were laid on white.",
  converted_cmyk: "Its printing colours (CMYK) were converted.",
  colour_profile_ignored: "Its colour profile was ignored.",
};

export const named = (attention) => NAMES[attention] ?? attention.toUpperCase();

export function verdict(rows) {
  const by = new Map();
  for (const row of rows) {
    const { label } = row.predictions[0];
    by.set(label, [...(by.get(label) ?? []), named(row.attention)]);
  }
  const [label] = by.keys();
  if (rows.length === 1) return `${label}: ${sureness(rows[0].predictions[0].score)}`;
  if (by.size === 1) return `${["", "", "Both", "All three", "All four"][rows.length] ?? "All"} say ${label}`;
  const sides = [...by].map(([said, names]) => `${listed(names)} ${names.length > 1 ? "say" : "says"} ${said}`);
  return `They disagree: ${listed(sides)}`;
}

export const listed = (words) => (words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

export function sureness(score) {
  if (score >= 0.95) return "almost certain";
  if (score >= 0.75) return "quite sure";
  if (score >= 0.5) return "more likely than not";
  return score >= 0.3 ? "a guess" : "no idea, really";
}

export const percent = (score) => (score < 0.0005 ? "< 0.1 %" : `${(100 * score).toFixed(score > 0.1 ? 0 : 1)} %`);

export const millions = (count) => (count / 1e6).toFixed(count < 1e7 ? 2 : 1);
