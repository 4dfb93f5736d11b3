// Draws the figures of the page. Each stands in the page as a picture, which
// stays where drawing is not possible, and on paper.
'use strict';
(() => {
  const state = document.documentElement.dataset;
  const problems = [];
  const note = (problem) => {
    problems.push(String(problem));
    state.problems = problems.length;
    state.problem = problems[0];
  };
  addEventListener('error', (event) => note(event.message));
  addEventListener('unhandledrejection', (event) => note(event.reason));
  addEventListener('securitypolicyviolation', (event) =>
    note(`${event.violatedDirective}: ${event.blockedURI}`));

  const hasWebGL = () => {
    try {
      const canvas = document.createElement('canvas');
      return Boolean(canvas.getContext('webgl'));
    } catch (error) {
      return false;
    }
  };
  // With a mouse, dragging zooms; a finger scrolls the page.
  const mouse = matchMedia('(hover: hover) and (pointer: fine)').matches;
  // The buttons are named one by one, because plotly's own choice includes one
  // that sends the data away.
  const config = (panel) => ({
    responsive: true,
    displaylogo: false,
    displayModeBar: mouse && 'hover',
    showSendToCloud: false,
    plotlyServerURL: '',
    modeBarButtons: panel.layout.scene
      ? [['toImage', 'resetCameraDefault3d']]
      : [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']],
  });

  // Where there is little width the camera steps back.
  const stepBack = (plot, panel) => {
    const {eye} = panel.layout.scene.camera;
    const narrow = plot.clientWidth < 400;
    for (const axis of 'xyz') eye[axis] *= narrow ? 1.5 : 1;
  };

  // Figures side by side are compared, so they turn together.
  const turnTogether = (plots) => {
    for (const plot of plots) {
      plot.on('plotly_relayout', (change) => {
        const camera = change['scene.camera'];
        if (!camera) return;
        const turned = JSON.stringify(camera);
        for (const other of plots) {
          if (other === plot || other.dataset.camera === turned) continue;
          other.dataset.camera = plot.dataset.camera = turned;
          Plotly.relayout(other, {'scene.camera': JSON.parse(turned)});
        }
      });
    }
  };

  const draw = async (figure, solid) => {
    const panels = JSON.parse(figure.querySelector('script').textContent);
    if (!solid && panels.some((panel) => panel.layout.scene)) {
      figure.dataset.drawn = 'still';
      return;
    }
    figure.classList.add('live');
    const plots = [...figure.querySelectorAll('.plot')];
    try {
      for (const [index, panel] of panels.entries()) {
        if (panel.layout.scene) stepBack(plots[index], panel);
        else if (mouse) panel.layout.dragmode = 'zoom';
        await Plotly.newPlot(plots[index], panel.data, panel.layout, config(panel));
      }
    } catch (error) {
      figure.classList.remove('live');
      figure.dataset.drawn = 'failed';
      throw error;
    }
    turnTogether(plots.filter((plot, index) => panels[index].layout.scene));
    figure.dataset.drawn = 'live';
  };

  const drawAll = async () => {
    if (typeof Plotly === 'undefined') {
      note('plotly.js did not start');
      return;
    }
    const solid = hasWebGL();
    for (const figure of document.querySelectorAll('figure')) {
      try {
        await draw(figure, solid);
      } catch (error) {
        note(error);
      }
      // Lets the page be scrolled in between.
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    state.drawn = 'all';
  };
  drawAll();
})();
