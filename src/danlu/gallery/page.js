"use strict";
(function () {
  var root = document.documentElement, key = "danlu-theme";
  function stored(value) {  // a page opened from a file may have no storage
    try { if (value) localStorage.setItem(key, value); return localStorage.getItem(key); } catch (e) { return null; }
  }
  function dark() {
    var theme = root.getAttribute("data-theme");
    return theme ? theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
  var saved = stored();
  if (saved === "dark" || saved === "light") root.setAttribute("data-theme", saved);
  document.addEventListener("DOMContentLoaded", function () {
    var toggle = document.getElementById("theme");
    function show() { toggle.textContent = dark() ? "Light" : "Dark"; toggle.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours"); }
    toggle.hidden = false;
    show();
    toggle.addEventListener("click", function () {
      var theme = dark() ? "light" : "dark";
      root.setAttribute("data-theme", theme);
      stored(theme);
      show();
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    document.querySelectorAll("button[data-copy]").forEach(function (button) {
      var source = document.getElementById(button.getAttribute("data-copy")), name = button.textContent;
      button.hidden = false;
      function told(done) {
        button.textContent = done ? "Copied" : "Press Ctrl+C";
        setTimeout(function () { button.textContent = name; }, 2000);
      }
      function select() {  // where the clipboard is closed to us: select, and let the reader copy
        var range = document.createRange(), selection = window.getSelection(), done = false;
        range.selectNodeContents(source);
        selection.removeAllRanges();
        selection.addRange(range);
        try { done = document.execCommand("copy"); } catch (e) { done = false; }
        told(done);
      }
      button.addEventListener("click", function () {
        if (!navigator.clipboard) return select();
        navigator.clipboard.writeText(source.textContent).then(function () { told(true); }, select);
      });
    });
    window.addEventListener("beforeprint", function () {
      document.querySelectorAll("details:not([open])").forEach(function (d) { d.open = true; d.setAttribute("data-printed", ""); });
    });
    window.addEventListener("afterprint", function () {
      document.querySelectorAll("details[data-printed]").forEach(function (d) { d.open = false; d.removeAttribute("data-printed"); });
    });
  });
})();
