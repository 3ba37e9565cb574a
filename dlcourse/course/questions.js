// Questions, one after the other. The answers are here already: no question goes to the kernel.

function render({ model, el }) {
  const words = model.get("words");
  const questions = model.get("questions");
  const name = `dlc-quiz-${Math.random()}`; // radio buttons of one view belong together
  const root = make("section", { className: "dlc-quiz", ariaLabel: words.title });
  const head = root.appendChild(make("header"));
  head.append(make("strong", { textContent: words.title }));
  const progress = head.appendChild(make("span"));
  const fields = root.appendChild(make("fieldset"));
  const answer = root.appendChild(make("div", { className: "dlc-quiz-answer", role: "status" }));
  const score = root.appendChild(make("p", { className: "dlc-quiz-score", role: "status" }));
  const buttons = root.appendChild(make("div", { className: "dlc-quiz-buttons" }));
  const button = (label, act) => {
    const made = make("button", { type: "button", textContent: label, onclick: act });
    return buttons.appendChild(made);
  };
  const check = button(words.check, () => {
    put({ checked: { ...model.get("checked"), [model.get("at")]: true } });
    (following.disabled ? again : following).focus();
  });
  const previous = button(words.previous, () => turn(-1));
  const following = button(words.next, () => turn(1));
  const again = button(words.again, () => {
    put({ at: 0, chosen: {}, checked: {} });
    fields.querySelector("input").focus();
  });

  function put(values) {
    Object.entries(values).forEach(([key, value]) => model.set(key, value));
    model.save_changes();
    draw();
  }

  function turn(by) {
    put({ at: model.get("at") + by });
    fields.querySelector("input:enabled")?.focus();
    if (!fields.querySelector("input:enabled")) (by > 0 ? following : previous).focus();
  }

  function draw() {
    const at = Math.min(model.get("at"), questions.length - 1);
    const { question, options, answer: right, why, where } = questions[at];
    const chosen = model.get("chosen")[at];
    const done = Boolean(model.get("checked")[at]);
    const all = questions.filter((_, i) => model.get("checked")[i]).length;
    const good = questions.filter(
      (q, i) => model.get("checked")[i] && model.get("chosen")[i] === q.answer,
    ).length;
    progress.textContent = fill(words.progress, { n: at + 1, of: questions.length });
    fields.replaceChildren(withCode(make("legend"), question));
    options.forEach((text, i) => {
      const line = fields.appendChild(make("label"));
      const input = { type: "radio", name, checked: i === chosen, disabled: done };
      const radio = line.appendChild(make("input", input));
      radio.addEventListener("change", () => {
        // Not put(): a new button under the finger would lose the focus.
        model.set("chosen", { ...model.get("chosen"), [at]: i });
        model.save_changes();
        check.disabled = false;
      });
      const mark = !done ? "" : i === right ? "✓" : i === chosen ? "✗" : "";
      line.append(make("span", { className: "dlc-quiz-mark", textContent: mark }));
      withCode(line.appendChild(make("span")), text);
      if (mark) line.dataset.mark = i === right ? "right" : "wrong";
    });
    answer.replaceChildren();
    if (done) {
      answer.append(make("strong", { textContent: chosen === right ? words.right : words.wrong }));
      withCode(answer.appendChild(make("span")), ` ${why} `);
      const place = answer.appendChild(make("em"));
      withCode(place, fill(words.where, { heading: where }));
    }
    const ended = all === questions.length;
    score.textContent = ended ? fill(words.score, { n: good, of: all }) : "";
    check.hidden = done;
    check.disabled = chosen === undefined;
    previous.disabled = at === 0;
    following.disabled = at === questions.length - 1;
    again.hidden = !ended;
  }

  el.append(root);
  draw();
}

function make(tag, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  // Lab would take the keys as its own: arrows would select another cell.
  if (tag === "input" || tag === "button") made.dataset.lmSuppressShortcuts = "true";
  return made;
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

// What stands between backquotes, as code.
function withCode(element, text) {
  text.split("`").forEach((part, i) => {
    element.append(i % 2 ? make("code", { textContent: part }) : part);
  });
  return element;
}

export default { render };
