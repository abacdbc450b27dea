element.addEventListener('click', event => {
  if (event.target.dataset.index) trigger('click', {index: Number(event.target.dataset.index)});
});
