"""How the page looks, and what is mended of Gradio's own controls, so that everybody can use them."""

from __future__ import annotations

from typing import Any

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)
"""Without the fonts that it would fetch, and with more contrast."""
CSS = """
.min_value, .max_value, .or { color: var(--body-text-color-subdued) !important; }
@media (max-width: 640px) { .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
"""
MENDED = """<script>
// Names and roles that Gradio leaves out, or gives twice. What it draws anew is mended anew.
const each = (selector, change) => document.querySelectorAll(selector).forEach(change);
const mend = () => {
  each(".empty[aria-label]:not([role])", (place) => place.setAttribute("role", "img"));
  each(".thumbnail-item[aria-label]", (button) => button.removeAttribute("aria-label"));
  each(".thumbnail-item img:not([alt=''])", (image) => (image.alt = ""));  // its caption stands beside it
  each("button[aria-dropeffect][aria-label]", (button) => button.removeAttribute("aria-label"));
  each(".toast-header[role]", (head) => { head.removeAttribute("role"); head.removeAttribute("tabindex"); });
};
new MutationObserver(mend).observe(document.documentElement, {
  subtree: true, childList: true, attributes: true, attributeFilter: ["aria-label", "alt", "role"] });
</script>"""
SHOWN: dict[str, Any] = {"theme": THEME, "css": CSS, "head": MENDED}
"""What the page is launched with."""
