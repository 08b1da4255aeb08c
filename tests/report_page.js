// What a page must not do, looked at where it is drawn: gives a list of faults.
(() => {
  const faults = [];
  const told = (element) => `${element.tagName.toLowerCase()} ${JSON.stringify(element.textContent.trim().slice(0, 60))}`;
  const parse = (colour) => {
    const found = colour.match(/[\d.]+/g).map(Number);
    return { rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1 };
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const { rgb, alpha } = parse(getComputedStyle(one).backgroundColor);
      if (alpha === 1) return rgb;
      if (alpha !== 0) faults.push(`${told(one)} has a ground that is half transparent`);
    }
    return [255, 255, 255];
  };

  // Where letters of a drawn text are: its own box is higher where another font has to help out.
  const drawnBox = (element, style) => {
    const box = element.getBoundingClientRect();
    const matrix = element.getScreenCTM();
    if (Math.abs(matrix.b) > 1e-6 || !element.getNumberOfChars()) return box;
    const size = parseFloat(style.fontSize) * matrix.a;
    const baseline = element.getStartPositionOfChar(0).matrixTransform(matrix).y;
    return new DOMRect(box.x, baseline - 0.8 * size, box.width, size);
  };

  if (document.documentElement.scrollWidth > innerWidth) {
    faults.push(`the page is ${document.documentElement.scrollWidth} wide in a window of ${innerWidth}`);
  }

  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    if (element.matches(".skip") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const isDrawn = element instanceof SVGElement;
    const { rgb, alpha } = parse(isDrawn ? style.fill : style.color);
    if (alpha !== 1) faults.push(`${told(element)} is half transparent`);
    const [light, dark] = [luminance(rgb), luminance(ground(element))].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faults.push(`${told(element)} has a contrast of ${contrast.toFixed(2)}`);
    const scroll = element.closest(".scroll");
    const range = document.createRange();
    range.selectNodeContents(node);
    const found = isDrawn ? [drawnBox(element, style)] : Array.from(range.getClientRects());
    for (const box of found) {
      if (box.width < 1 || box.height < 1) continue;
      if (scroll) {
        const hole = scroll.getBoundingClientRect();
        const head = element.closest("thead") ? 0 : scroll.querySelector("thead").getBoundingClientRect().height;
        if (box.right > hole.right || box.bottom > hole.bottom || box.top < hole.top + head) continue; // scrolled to
      } else if (box.left < -1 || box.right > innerWidth + 1) {
        faults.push(`${told(element)} is cut at the page's edge`);
      }
      boxes.push({ element, box, isDrawn });
    }
    for (let one = element; one && one !== document.body; one = one.parentElement) {
      const over = getComputedStyle(one);
      if (one.matches(".scroll") || isDrawn) break;
      const hides = over.overflowX !== "visible" || over.textOverflow !== "clip";
      if (hides && one.scrollWidth > one.clientWidth + 1) faults.push(`${told(one)} is cut`);
    }
  }

  boxes.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length && boxes[j].box.top < boxes[i].box.bottom; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      if (a.element === b.element) continue;
      const width = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const height = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      const least = Math.min(a.box.height, b.box.height);
      if (width > 2 && height > 0.35 * least) faults.push(`${told(a.element)} and ${told(b.element)} overlap`);
    }
  }

  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) faults.push("a picture is not shown");
    if (!image.alt) faults.push("a picture has no description");
  }
  for (const drawn of document.querySelectorAll("[role=img]")) {
    if (!drawn.getAttribute("aria-label")) faults.push("a figure has no description");
  }
  const names = Array.from(document.querySelectorAll("[id]"), (element) => element.id);
  for (const name of names) if (names.indexOf(name) !== names.lastIndexOf(name)) faults.push(`two things are named ${name}`);
  return faults.slice(0, 40);
})();
