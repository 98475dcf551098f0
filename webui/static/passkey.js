// Signing in by passkey, and adding one. Both ask the box for options, hand them to the browser and send
// back what the authenticator signed.
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

async function post(path, body) {
  const reply = await fetch(path, { method: "POST", headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  const value = await reply.json();
  if (!reply.ok) throw new Error((value.detail || value.title) + ": " + value.mend);
  return value;
}

function plain(credential) {
  const from = credential.response;
  const response = { clientDataJSON: text(from.clientDataJSON) };
  for (const name of ["attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (from[name]) response[name] = text(from[name]);
  }
  if (from.getTransports) response.transports = from.getTransports();
  return { id: credential.id, rawId: text(credential.rawId), type: credential.type, response, clientExtensionResults: credential.getClientExtensionResults() };
}

// options makes bytes of what JSON has as base64url (WebAuthn Level 3, parseCreationOptionsFromJSON).
function options(json) {
  json.challenge = bytes(json.challenge);
  if (json.user) json.user.id = bytes(json.user.id);
  for (const list of [json.excludeCredentials, json.allowCredentials]) {
    for (const one of list || []) one.id = bytes(one.id);
  }
  return { publicKey: json };
}

async function signIn() {
  const { options: json } = await post("/api/v1/sign-in/passkey/options");
  const credential = await navigator.credentials.get(options(json));
  await post("/api/v1/sign-in/passkey", { credential: plain(credential) });
  location.assign(document.getElementById("passkey-sign-in").dataset.next);
}

async function add() {
  const name = document.getElementById("passkey-name");
  if (!name.reportValidity()) return;
  const { options: json } = await post("/api/v1/account/passkey-options");
  const credential = await navigator.credentials.create(options(json));
  await post("/api/v1/account/passkeys", { name: name.value, credential: plain(credential) });
  location.assign("/account?done=passkey-added");
}

// words says what became of it where the browser, not the box, refused.
function words(problem, id) {
  switch (problem.name) {
    case "NotAllowedError": return id === "passkey-add" ? "No passkey was made: it was cancelled or took too long." : "Nothing was signed: it was cancelled, took too long, or no passkey for this box is here.";
    case "InvalidStateError": return "This device has a passkey for you already.";
    case "SecurityError": return "This browser allows no passkey here. It has to trust the box’s certificate: install the CA bundle first.";
    default: return problem.message.charAt(0).toUpperCase() + problem.message.slice(1) + ".";
  }
}

for (const [id, action] of [["passkey-sign-in", signIn], ["passkey-add", add]]) {
  const place = document.getElementById(id);
  if (!place || !window.PublicKeyCredential) continue;
  place.hidden = false;
  const button = place.querySelector("button");
  const problem = place.querySelector("[role=alert]");
  button.addEventListener("click", async () => {
    problem.hidden = true;
    button.disabled = true;
    try {
      await action();
    } catch (refusal) {
      problem.textContent = words(refusal, id);
      problem.hidden = false;
    }
    button.disabled = false;
  });
}
