// Sliders and the picture of their position. All pictures are here already: no question goes to
// the kernel. Without sliders it is one picture, which may move.

function render({ model, el }) {
  const sliders = model.get("sliders");
  const root = document.createElement("section");
  root.className = "dlc-explore";
  const figure = document.createElement("figure");

  const draw = () => {
    const positions = model.get("positions");
    let number = 0;
    sliders.forEach(({ values }, i) => {
      number = number * values.length + positions[i];
      inputs[i].value = positions[i];
      inputs[i].setAttribute("aria-valuetext", values[positions[i]]);
      outputs[i].textContent = values[positions[i]];
    });
    figure.innerHTML = model.get("pictures")[number];
  };

  const controls = root.appendChild(document.createElement("div"));
  const outputs = [];
  const inputs = sliders.map(({ label, values }, i) => {
    const line = controls.appendChild(document.createElement("label"));
    line.appendChild(document.createElement("span")).textContent = label;
    const input = line.appendChild(document.createElement("input"));
    Object.assign(input, { type: "range", min: 0, max: values.length - 1, step: 1 });
    // Lab would take the arrow keys as its own: up and down would select another cell.
    input.dataset.lmSuppressShortcuts = "true";
    input.addEventListener("input", () => {
      const positions = [...model.get("positions")];
      positions[i] = Number(input.value);
      model.set("positions", positions);
      model.save_changes();
    });
    const output = line.appendChild(document.createElement("output"));
    output.setAttribute("aria-hidden", "true"); // the slider says it already
    outputs.push(output);
    return input;
  });
  root.append(figure);
  el.append(root);
  draw();
  model.on("change:positions", draw);
  model.on("change:pictures", draw); // a film: the kernel sends the next one
  return () => {
    model.off("change:positions", draw);
    model.off("change:pictures", draw);
  };
}

export default { render };
