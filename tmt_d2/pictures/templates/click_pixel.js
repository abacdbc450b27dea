element.addEventListener('click', event => {
  const picture = event.target.closest('.tmt-pic');
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  element.querySelectorAll('.tmt-mark').forEach(mark => { mark.style.left = 100 * x + '%'; mark.style.top = 100 * y + '%'; });
  trigger('click', {x: x, y: y});
});
