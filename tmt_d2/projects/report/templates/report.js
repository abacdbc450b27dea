for (const tabs of document.querySelectorAll('.tabs')) {
  const buttons = [...tabs.querySelectorAll('button')];
  const panes = buttons.map(button => document.getElementById(button.dataset.pane));
  const show = chosen => buttons.forEach((button, index) => {
    button.setAttribute('aria-pressed', index === chosen);
    panes[index].hidden = index !== chosen;
  });
  buttons.forEach((button, index) => button.addEventListener('click', () => show(index)));
  show(0);
}
for (const example of document.querySelectorAll('.example')) {
  const images = JSON.parse(example.querySelector('script').textContent);
  const [left, right] = example.querySelectorAll('select');
  const [below, above] = example.querySelectorAll('img');
  const slider = example.querySelector('input'), bar = example.querySelector('i');
  const draw = () => {
    above.src = images[left.value]; below.src = images[right.value];
    above.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; bar.style.left = `${slider.value}%`;
  };
  [left, right, slider].forEach(item => item.addEventListener('input', draw));
  draw();
}
