element.addEventListener('click', event => {
  const example = event.target.closest('[data-index]');
  if (example) trigger('click', {index: Number(example.dataset.index)});
});
