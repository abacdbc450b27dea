const show = (x, y) => {
  element.querySelectorAll('.tmt-mark').forEach(mark => { mark.style.left = 100 * x + '%'; mark.style.top = 100 * y + '%'; });
};
element.addEventListener('click', event => {
  const image = event.target.closest('.tmt-pic');
  if (!image) return;
  const box = image.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  show(x, y);
  trigger('click', {x: x, y: y});
});
const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
element.addEventListener('keydown', event => {
  const mark = event.target.matches('.tmt-pic') && event.target.querySelector('.tmt-mark');
  if (!mark) return;
  const at = [parseFloat(mark.style.left) / 100, parseFloat(mark.style.top) / 100];
  if (steps[event.key]) {
    const step = event.shiftKey ? 0.1 : 0.02;
    show(...at.map((value, axis) => Math.min(1, Math.max(0, value + step * steps[event.key][axis]))));
  } else if (event.key === 'Enter' || event.key === ' ') {
    element.dataset.focus = [...element.querySelectorAll('.tmt-pic')].indexOf(event.target);
    trigger('click', {x: at[0], y: at[1]});
  } else {
    return;
  }
  event.preventDefault();
});
// A new answer replaces the images; the image that had the keyboard focus gets it again.
new MutationObserver(() => {
  const image = element.dataset.focus && element.querySelectorAll('.tmt-pic')[element.dataset.focus];
  if (image && document.activeElement === document.body) { image.focus(); delete element.dataset.focus; }
}).observe(element, {childList: true, subtree: true});
