// Pictures go to the server, boxes come back. The lowest score and the classes are chosen here, from
// all that the detector reported; another suppression has to be asked for again.

const $ = (id) => document.getElementById(id);

const AT_ONCE = 2;           // uploads: one is computed while the next arrives
const PATIENCE = 30;         // tries while the server is busy, a second apart
const CAMERA_SIDE = 1280;    // pixels of a frame that is sent
const SUPPRESSIONS = {
  hard: "NMS: the best box stays",
  diou: "DIoU NMS",
  soft_linear: "Soft NMS, linear",
  soft_gaussian: "Soft NMS, Gaussian",
  matrix_linear: "Matrix NMS, linear",
  matrix_gaussian: "Matrix NMS, Gaussian",
  wbf: "Weighted boxes fusion",
  nmm: "Non-maximum merging",
  none: "All boxes stay",
};
const WITHOUT_IOU = ["soft_gaussian", "matrix_linear", "matrix_gaussian", "none"];

let model;                   // what /api/model says
let pictures = [];           // cards, in the order in which they came
let camera = null;           // {stream, video, card} while it runs
let chosen = new Set();      // labels that are shown


// ------------------------------------------------------------------------------------ asking

/** What the detector finds in a Blob; null where a newer frame took its place. */
async function detect(blob, { stream, signal } = {}) {
  const query = new URLSearchParams();
  if (model.selection) {
    query.set("nms", $("nms").value);
    query.set("iou_threshold", $("iou").value);
  }
  if (stream) query.set("stream", stream);
  const answer = await post(`api/detect?${query}`, blob, signal);
  return answer.status === 204 ? null : answer.json();
}

/** Send a picture; while the server is busy, try again. */
async function post(address, blob, signal) {
  if (blob.size > model.limits.bytes) {
    throw new Error(`the file has ${megabytes(blob.size)} MB, allowed are ${megabytes(model.limits.bytes)}`);
  }
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  for (let tries = 1; ; tries += 1) {
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": type }, body: blob, signal })
      .catch((error) => {
        throw signal?.aborted ? error : new Error("the server does not answer; is it still running?");
      });
    if (answer.ok) return answer;
    if (answer.status !== 503 || tries === PATIENCE) {
      const { error } = await answer.json().catch(() => ({ error: `the server says ${answer.status}` }));
      throw new Error(error);
    }
    await new Promise((go) => setTimeout(go, 1000));
  }
}

const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1).replace(/\.0$/, "");


// ------------------------------------------------------------------------------------- cards

/** A card for a picture or the camera, with nothing in it yet. */
function makeCard(name) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = name;
  card.querySelector(".boxes").before(document.createElement("i"));
  $("cards").append(card);
  return { name, card, found: null, surface: null };
}

function addFiles(files) {
  for (const file of files) {
    const picture = { ...makeCard(file.name || "pasted picture"), file, stale: true, request: null };
    picture.card.querySelector(".summary").textContent = "waiting …";
    picture.card.querySelector(".remove").onclick = () => remove(picture);
    picture.card.querySelector(".save").onclick = () => saveDrawn(picture);
    pictures.push(picture);
  }
  refresh();
  askForNext();
}

function remove(picture) {
  picture.request?.abort();
  if (picture.surface?.src) URL.revokeObjectURL(picture.surface.src);
  picture.card.remove();
  pictures = pictures.filter((each) => each !== picture);
  refresh();
  askForNext();
}

/** Start requests for pictures whose boxes are missing or of other settings. */
function askForNext() {
  const running = pictures.filter((each) => each.request).length;
  const waiting = pictures.filter((each) => each.stale && !each.request);
  for (const picture of waiting.slice(0, AT_ONCE - running)) askFor(picture);
}

async function askFor(picture) {
  const request = new AbortController();
  Object.assign(picture, { request, stale: false });
  picture.card.classList.add("asking");
  try {
    const found = await detect(picture.file, request);
    if (!picture.surface) picture.surface = await pictureOf(picture.file, found);
    picture.found = found;
    place(picture.card, picture.surface, found);
    fault(picture, null);
  } catch (error) {
    if (!request.signal.aborted) fault(picture, error.message);
  }
  if (picture.request === request) picture.request = null;
  picture.card.classList.toggle("asking", picture.stale);
  refresh();
  askForNext();
}

function fault(picture, message) {
  const line = picture.card.querySelector(".fault");
  line.hidden = !message;
  line.textContent = message ?? "";
  if (message) picture.found = null;
}

/** Ask again for everything: the suppression is another one. */
function askAgain() {
  for (const picture of pictures) {
    picture.request?.abort();
    Object.assign(picture, { stale: true, request: null });
    picture.card.classList.add("asking");
  }
  askForNext();
}

/** The picture as the detector saw it: the browser's own, or the server's where they differ. */
async function pictureOf(file, { width, height }) {
  const own = await load(file).catch(() => null);
  if (own && own.naturalWidth === width && own.naturalHeight === height) return own;
  const preview = await post("api/preview", file);  // TIFF, say, or turned in another way
  return load(await preview.blob());
}

async function load(blob) {
  const image = new Image();
  image.alt = "";
  image.src = URL.createObjectURL(blob);
  await image.decode();
  return image;
}

/** Put a picture on its card, small ones enlarged so that boxes and names have room. */
function place(card, surface, { width, height }) {
  const stage = card.querySelector(".stage");
  if (surface.parentElement === stage) return;
  stage.firstElementChild.replaceWith(surface);
  stage.classList.add("shown");
  const scale = Math.max(1, Math.floor(320 / Math.max(width, height)));
  surface.style.width = scale > 1 ? `${width * scale}px` : "";
  surface.classList.toggle("small", scale > 1);
}


// ------------------------------------------------------------------------------------- boxes

/** Detections of a card that are shown, best first: {box, score, label}. */
function visible({ found }) {
  if (!found) return [];
  const threshold = Number($("threshold").value);
  return found.boxes
    .map((box, i) => ({ box, score: found.scores[i], label: found.labels[i] }))
    .filter(({ score, label }) => score >= threshold && chosen.has(label));
}

function drawBoxes(picture) {
  const shown = visible(picture);
  const { card, found } = picture;
  const boxes = shown.map((each) => boxElement(each, found));
  card.querySelector(".boxes").replaceChildren(...boxes.slice().reverse());  // the best on top
  const list = shown.map(({ label, score }, i) => {
    const row = document.createElement("li");
    row.append(swatch(label), text("span", "name", model.classes[label].name), text("span", "score", score.toFixed(2)));
    row.onmouseenter = () => boxes[i].classList.add("strong");
    row.onmouseleave = () => boxes[i].classList.remove("strong");
    return row;
  });
  card.querySelector("ol").replaceChildren(...list);
  card.querySelector("details").hidden = !shown.length;
  card.querySelector(".save").disabled = !found;
  if (found) {
    card.querySelector(".summary").textContent =
      `${count(shown.length, "object")} · ${found.width} × ${found.height} · ${Math.round(1000 * found.seconds)} ms`;
  } else if (!card.querySelector(".fault").hidden) {
    card.querySelector(".summary").textContent = "";
  }
}

function boxElement({ box: [x1, y1, x2, y2], score, label }, { width, height }) {
  const element = text("div", "box", "");
  const { name, color, ink } = model.classes[label];
  element.append(text("span", "", `${name} ${score.toFixed(2)}`));
  Object.assign(element.style, {
    left: `${(100 * x1) / width}%`, top: `${(100 * y1) / height}%`,
    width: `${(100 * (x2 - x1)) / width}%`, height: `${(100 * (y2 - y1)) / height}%`,
  });
  element.style.setProperty("--color", color);
  element.style.setProperty("--on-color", ink);
  element.classList.toggle("top", y1 < 0.07 * height);         // no room for the name above
  element.classList.toggle("right", x1 > 0.7 * width);         // nor to the right
  return element;
}

function text(tag, kind, content) {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = content;
  return element;
}

function swatch(label) {
  const element = text("span", "swatch", "");
  element.style.setProperty("--color", model.classes[label].color);
  return element;
}

const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** Show everything anew from what is known. */
function refresh() {
  everything().forEach(drawBoxes);
  const done = pictures.filter((each) => each.found).length;
  const busy = pictures.filter((each) => each.request || each.stale).length;
  const objects = pictures.flatMap(visible).length;
  if (!camera) {
    $("status").textContent = !pictures.length ? ""
      : `${count(objects, "object")} in ${count(done, "picture")}${busy ? `, ${busy} to go` : ""}`;
  }
  $("empty").hidden = everything().length > 0;
  $("save-json").disabled = !done;
  $("clear").disabled = !pictures.length;
  countClasses();
}

const everything = () => (camera ? [...pictures, camera.picture] : pictures);


// ---------------------------------------------------------------------------------- settings

/** How many of each class reach the lowest score. */
function countClasses() {
  const threshold = Number($("threshold").value);
  const counts = new Map();
  for (const { found } of everything()) {
    found?.labels.forEach((label, i) => {
      if (found.scores[i] >= threshold) counts.set(label, (counts.get(label) ?? 0) + 1);
    });
  }
  document.querySelectorAll("#classes li").forEach((row, label) => {
    row.querySelector(".count").textContent = counts.get(label) ?? "";
  });
  $("classes-count").textContent = `${chosen.size} of ${model.classes.length}`;
}

function setUpClasses() {
  chosen = new Set(model.classes.keys());
  $("classes").replaceChildren(...model.classes.map(({ name }, label) => {
    const row = document.createElement("li");
    const line = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.onchange = () => {
      if (box.checked) chosen.add(label);
      else chosen.delete(label);
      refresh();
    };
    line.append(box, swatch(label), text("span", "name", name), text("span", "count", ""));
    row.append(line);
    return row;
  }));
  const few = model.classes.length <= 12;
  $("classes-filter").hidden = few;
  $("classes-box").open = matchMedia("(min-width: 56rem)").matches || few;
  $("classes-filter").oninput = filterClasses;
  $("classes-all").onclick = () => chooseClasses(true);
  $("classes-none").onclick = () => chooseClasses(false);
}

function filterClasses() {
  const wanted = $("classes-filter").value.trim().toLowerCase();
  document.querySelectorAll("#classes li").forEach((row, label) => {
    row.hidden = !model.classes[label].name.toLowerCase().includes(wanted);
  });
}

/** Of all classes that the filter leaves. */
function chooseClasses(checked) {
  document.querySelectorAll("#classes li").forEach((row, label) => {
    if (row.hidden) return;
    row.querySelector("input").checked = checked;
    if (checked) chosen.add(label);
    else chosen.delete(label);
  });
  refresh();
}

function setUpSuppression() {
  const { selection } = model;
  $("suppression").disabled = !selection;
  if (!selection) {
    $("nms-note").textContent = "This model has its suppression built in.";
    return;
  }
  $("nms").replaceChildren(...selection.kinds.map((kind) => new Option(SUPPRESSIONS[kind] ?? kind, kind)));
  $("nms").value = selection.nms;
  $("iou").value = selection.iou_threshold;
  let pause;
  const change = () => {
    showSuppression();
    clearTimeout(pause);
    pause = setTimeout(askAgain, 200);  // not for every step of the slider
  };
  $("nms").onchange = change;
  $("iou").oninput = change;
  showSuppression();
}

function showSuppression() {
  $("iou-value").textContent = Number($("iou").value).toFixed(2);
  $("iou-field").hidden = WITHOUT_IOU.includes($("nms").value);
}

function setUpThreshold() {
  const least = model.selection?.score_threshold ?? 0;
  Object.assign($("threshold"), { min: Math.floor(100 * least) / 100, value: Math.max(least, model.threshold) });
  const show = () => {
    $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
    refresh();
  };
  $("threshold").oninput = show;
  show();
}


// ------------------------------------------------------------------------------------ camera

async function toggleCamera() {
  if (camera) stopCamera();
  else await startCamera($("cameras").value);
}

async function startCamera(device) {
  if (!navigator.mediaDevices) {
    say("The browser gives the camera to pages from this machine or over https only.");
    return;
  }
  try {
    const wanted = device ? { deviceId: { exact: device } } : { facingMode: "environment" };
    const stream = await navigator.mediaDevices.getUserMedia({ video: { ...wanted, width: { ideal: CAMERA_SIDE } } });
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: stream });
    await video.play();
    camera = { stream, video, id: newName(), picture: makeCard("Webcam") };
  } catch (error) {
    say(`The camera cannot be used: ${error.message || error.name}`);
    return;
  }
  const { picture, stream } = camera;
  picture.card.classList.add("live");
  $("cards").prepend(picture.card);
  picture.surface = document.createElement("canvas");
  picture.card.querySelector(".save").onclick = () => saveDrawn(picture);
  picture.card.querySelector(".remove").textContent = "Stop";
  picture.card.querySelector(".remove").onclick = stopCamera;
  stream.getVideoTracks()[0].onended = stopCamera;  // unplugged
  showCameraButton(true);
  refresh();
  await listCameras();
  await watch(camera);
}

/** Frame by frame: each is shown with its own boxes, never with those of another. */
async function watch(own) {
  const { video, picture, id } = own;
  const frame = document.createElement("canvas");
  let smooth = null;
  while (camera === own) {
    const start = performance.now();
    try {
      const scale = Math.min(1, CAMERA_SIDE / Math.max(video.videoWidth, video.videoHeight));
      frame.width = Math.round(video.videoWidth * scale);
      frame.height = Math.round(video.videoHeight * scale);
      frame.getContext("2d").drawImage(video, 0, 0, frame.width, frame.height);
      const blob = await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.9));
      const found = blob && await detect(blob, { stream: id });
      if (camera !== own) return;
      if (found) {
        Object.assign(picture.surface, { width: frame.width, height: frame.height });
        picture.surface.getContext("2d").drawImage(frame, 0, 0);
        picture.found = found;
        place(picture.card, picture.surface, found);
        const seconds = (performance.now() - start) / 1000;
        smooth = smooth === null ? seconds : 0.8 * smooth + 0.2 * seconds;
        drawBoxes(picture);
        countClasses();
        picture.card.querySelector(".summary").textContent += ` · ${(1 / smooth).toFixed(1)} frames per second`;
      }
      fault(picture, null);
    } catch (error) {
      if (camera !== own) return;
      fault(picture, error.message);
      refresh();
      await new Promise((go) => setTimeout(go, 1000));
    }
    await new Promise(requestAnimationFrame);  // also pauses while the page is hidden
  }
}

function stopCamera() {
  if (!camera) return;
  camera.stream.getTracks().forEach((track) => track.stop());
  camera.picture.card.remove();
  camera = null;
  showCameraButton(false);
  refresh();
}

function showCameraButton(on) {
  $("camera").textContent = on ? "Stop the webcam" : "Use the webcam";
  $("camera").ariaPressed = String(on);
  say(on ? "The webcam is on." : "The webcam is off.");
}

async function listCameras() {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  const current = camera?.stream.getVideoTracks()[0].getSettings().deviceId;
  $("cameras").replaceChildren(...devices.map(({ label, deviceId }, i) => new Option(label || `camera ${i + 1}`, deviceId)));
  $("cameras").value = current;
  $("cameras-label").hidden = devices.length < 2;
}

const newName = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16)).join("");


// --------------------------------------------------------------------------------- downloads

/** All boxes that are shown, as COCO results with names. */
function results() {
  return pictures.flatMap((picture, i) => visible(picture).map(({ box: [x1, y1, x2, y2], score, label }) => ({
    image_id: i + 1,
    file_name: picture.name,
    category_id: model.classes[label].id,
    category: model.classes[label].name,
    bbox: [x1, y1, x2 - x1, y2 - y1],
    score,
  })));
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The picture in its own size with the boxes that are shown. */
async function saveDrawn(picture) {
  const { surface, found, name } = picture;
  const width = surface.naturalWidth ?? surface.width;
  const height = surface.naturalHeight ?? surface.height;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d");
  pen.drawImage(surface, 0, 0);
  const scale = width / found.width;  // below 1 for the preview of a large picture
  const line = Math.max(1, Math.round(Math.max(width, height) / 400));
  const size = Math.max(10, 7 * line);
  pen.font = `${size}px system-ui, sans-serif`;
  pen.lineWidth = line;
  for (const { box, score, label } of visible(picture).reverse()) {
    const [x1, y1, x2, y2] = box.map((value) => value * scale);
    const { name: kind, color, ink } = model.classes[label];
    pen.strokeStyle = pen.fillStyle = color;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const caption = `${kind} ${score.toFixed(2)}`;
    const room = pen.measureText(caption).width + 0.6 * size;
    const left = Math.max(0, Math.min(x1, width - room));
    const top = y1 >= 1.4 * size ? y1 - 1.4 * size : y1;
    pen.fillRect(left, top, room, 1.4 * size);
    pen.fillStyle = ink;
    pen.fillText(caption, left + 0.3 * size, top + 1.05 * size);
  }
  const drawn = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (drawn) save(drawn, `${name.replace(/\.[^.]*$/, "")}_detected.png`);
  else say("This picture is too large for the browser to draw on; use demo/demo.py for it.");
}


// ------------------------------------------------------------------------------------- start

function say(line) {
  $("status").textContent = line;
}

function setUpDropping() {
  let depth = 0;  // enter and leave come for every element on the way
  const mark = (change) => {
    depth = change ? depth + change : 0;
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", () => mark(1));
  addEventListener("dragleave", () => mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(0);
    addFiles(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => addFiles(event.clipboardData.files));
  $("files").onchange = () => {
    addFiles($("files").files);
    $("files").value = "";  // the same file may be chosen again
  };
}

async function start() {
  try {
    model = await (await fetch("api/model")).json();
  } catch {
    $("about").textContent = "The server does not answer; start it again and reload this page.";
    return;
  }
  const { name, device, classes } = model;
  document.title = `${name} – detkit`;
  $("about").textContent = `${name} · ${classes.length} class${classes.length === 1 ? "" : "es"} · on ${device}`;
  setUpClasses();
  setUpSuppression();
  setUpThreshold();
  setUpDropping();
  $("settings").onsubmit = (event) => event.preventDefault();
  $("camera").onclick = toggleCamera;
  $("cameras").onchange = () => {
    stopCamera();
    startCamera($("cameras").value);
  };
  $("clear").onclick = () => [...pictures].forEach(remove);
  $("save-json").onclick = () => {
    save(new Blob([`${JSON.stringify(results(), null, 1)}\n`], { type: "application/json" }), "detections.json");
  };
}

start();
