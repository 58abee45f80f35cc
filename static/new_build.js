// The form for a new build: suggestions that follow what is typed.
"use strict";
(() => {
  const form = document.getElementById("request");
  const field = (name) => form.elements.namedItem(name);
  const offer = (name, values) => {
    document.getElementById(`${name}-list`).replaceChildren(...values.map((value) => {
      const option = document.createElement("option");
      option.value = value;
      return option;
    }));
  };
  const ask = async (query) => {
    try {
      const answer = await fetch(`${form.dataset.workflows}?${new URLSearchParams(query)}`, {headers: {Accept: "application/json"}});
      const found = answer.ok ? await answer.json() : {names: []};
      document.getElementById("registry-said").textContent = found.problem || "";
      return found.names;
    } catch { return []; }
  };

  // Without scripts all fields are there, and those of the chosen way count.
  const showWay = () => {
    for (const part of form.querySelectorAll("[data-way]")) {
      part.hidden = !part.dataset.way.split(" ").includes(field("what").value);
    }
  };
  field("what").addEventListener("change", showWay);
  showWay();

  const version = () => field("version").value.trim() || "latest";
  const offerWorkflows = async () => offer("workflow", await ask({version: version()}));
  const offerSteps = async () => {
    const workflow = field("workflow").value.trim();
    offer("step_id", workflow ? await ask({workflow, version: version()}) : []);
  };
  let timer = 0;
  field("workflow").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(offerSteps, 300); });
  field("version").addEventListener("change", () => { offerWorkflows(); offerSteps(); });

  let known = null;
  const offerArchitectures = () => {
    if (known) offer("architecture", known.architectures.filter((one) => one.platform === field("platform").value).map((one) => one.name));
  };
  const MACHINE = ["platform", "architecture", "container_engine", "mpi", "gpu", "gpu_arch"];
  field("platform").addEventListener("change", offerArchitectures);
  field("machine").addEventListener("change", () => {
    const machine = known && known.machines[field("machine").value];
    field("expanded").value = machine ? field("machine").value : "";
    if (!machine) return;
    for (const name of MACHINE) field(name).value = machine[name] || "";
    offerArchitectures();
  });

  const begin = async () => {
    try {
      const answer = await fetch(form.dataset.choices, {headers: {Accept: "application/json"}});
      if (answer.ok) known = await answer.json();
    } catch { /* the lists stay as they are */ }
    offerArchitectures();
  };
  begin();
  offerWorkflows();
  offerSteps();
  ask({versions: 1}).then((names) => offer("version", names));
  const plan = document.getElementById("plan");
  if (plan) { plan.focus(); plan.scrollIntoView(); }
})();
