// Every sentence of the page, in one table: a row for each, sorted by key, and a column for each language.

/** The columns: what a browser calls each language, and what the language calls itself. */
export const LANGUAGES = [
  ["en", "English"],
  ["de", "Deutsch"],
];

/** Names in braces are filled in.
 * @type {Record<string, string[]>} */
export const TEXTS = {
  "badge.agrees": ["Agrees with Python to {worst}", "Stimmt mit Python auf {worst} überein"],
  "badge.checking": ["Comparing with Python …", "Vergleich mit Python …"],
  "badge.differs": ["Layer {layer} differs from Python by {worst}", "Schicht {layer} weicht von Python um {worst} ab"],
  "badge.hint": ["Every layer’s values for a few images, computed in this browser, against those that Python recorded: the largest difference, relative to the layer’s largest value.", "Die Werte jeder Schicht für einige Bilder, in diesem Browser berechnet, gegen die von Python aufgezeichneten: der größte Unterschied, bezogen auf den größten Wert der Schicht."],
  "change.accuracy": ["Accuracy on the embedded test images", "Trefferquote auf den mitgelieferten Testbildern"],
  "change.after": ["changed", "verändert"],
  "change.before": ["as trained", "wie trainiert"],
  "change.channel": ["Channel (of {count})", "Kanal (von {count})"],
  "change.channels": ["Channels", "Kanäle"],
  "change.chip": ["Channel {channel}", "Kanal {channel}"],
  "change.chip-hint": ["Click: choose. Double click: set to zero.", "Klick: auswählen. Doppelklick: auf null setzen."],
  "change.chip-off": ["Channel {channel}, set to zero", "Kanal {channel}, auf null gesetzt"],
  "change.copied": ["The link is in the clipboard.", "Der Link ist in der Zwischenablage."],
  "change.copy": ["Copy link", "Link kopieren"],
  "change.corner": ["true ↓ predicted →", "wahr ↓ vorhergesagt →"],
  "change.counting": ["Counting …", "Wird gezählt …"],
  "change.down": ["Shift down", "Nach unten schieben"],
  "change.filter": ["Set the filter to …", "Filter setzen auf …"],
  "change.filter.blur": ["blur: the mean", "Weichzeichner: der Mittelwert"],
  "change.filter.horizontal": ["horizontal edges", "waagrechte Kanten"],
  "change.filter.negative": ["the negative of itself", "sein eigenes Negativ"],
  "change.filter.outline": ["outlines", "Umrisse"],
  "change.filter.same": ["identity: the pixel itself", "Identität: das Pixel selbst"],
  "change.filter.vertical": ["vertical edges", "senkrechte Kanten"],
  "change.filter.zero": ["zero", "null"],
  "change.from-unit": ["from unit (of {count})", "von Einheit (von {count})"],
  "change.image": ["The image", "Das Bild"],
  "change.in-address": ["The link is in the address bar.", "Der Link steht in der Adresszeile."],
  "change.input-channel": ["from channel (of {count})", "von Kanal (von {count})"],
  "change.interval": ["{right} of {count}; 95 % interval {low} to {high}", "{right} von {count}; 95-%-Intervall {low} bis {high}"],
  "change.layer": ["Layer", "Schicht"],
  "change.layer-hint": ["A layer of type {type}.", "Eine Schicht vom Typ {type}."],
  "change.lead": ["Set a weight, silence a channel, switch a layer off, disturb the image: prediction and accuracy follow. Nothing is lost; everything can be undone.", "Setze ein Gewicht, schalte einen Kanal stumm oder eine Schicht aus, störe das Bild: Vorhersage und Trefferquote folgen. Nichts geht verloren, alles lässt sich zurücknehmen."],
  "change.list": ["What you changed", "Was du verändert hast"],
  "change.matrix": ["Confusion matrix", "Verwechslungsmatrix"],
  "change.matrix-hint": ["Images of each class (rows), by what they are predicted as (columns). ▲ and ▼: more or fewer than as trained.", "Bilder jeder Klasse (Zeilen) danach, als was sie vorhergesagt werden (Spalten). ▲ und ▼: mehr oder weniger als wie trainiert."],
  "change.network": ["The network", "Das Netz"],
  "change.no-images": ["This page carries no test images, so there is nothing to count.", "Diese Seite enthält keine Testbilder, also gibt es nichts zu zählen."],
  "change.no-weights": ["This layer has no weights.", "Diese Schicht hat keine Gewichte."],
  "change.noise": ["Noise", "Rauschen"],
  "change.none": ["Nothing yet.", "Noch nichts."],
  "change.off": ["Switch this layer off", "Diese Schicht ausschalten"],
  "change.off-hint": ["Off, it hands on what enters it where the shapes agree, and zeros elsewhere.", "Ausgeschaltet gibt sie weiter, was hineingeht, wo die Formen passen, und sonst Nullen."],
  "change.other-noise": ["Other noise", "Anderes Rauschen"],
  "change.pixels": ["{value} px", "{value} px"],
  "change.remove": ["Undo: {what}", "Zurücknehmen: {what}"],
  "change.reset": ["Reset all", "Alles zurücksetzen"],
  "change.restore": ["Restore channel {channel}", "Kanal {channel} wiederherstellen"],
  "change.right": ["Shift right", "Nach rechts schieben"],
  "change.said.noise": ["noise with a standard deviation of {sigma}", "Rauschen mit einer Standardabweichung von {sigma}"],
  "change.said.off": ["{layer} switched off", "{layer} ausgeschaltet"],
  "change.said.shift": ["image shifted: {right} to the right, {down} down", "Bild verschoben: {right} nach rechts, {down} nach unten"],
  "change.said.turn": ["image turned by {degrees}°", "Bild um {degrees}° gedreht"],
  "change.said.weight": ["{layer}: {name}[{index}] from {from} to {value}", "{layer}: {name}[{index}] von {from} auf {value}"],
  "change.said.weights": ["{layer}: {count} numbers of {name}", "{layer}: {count} Zahlen von {name}"],
  "change.said.zeroed": ["{layer}: channel {channel} set to zero", "{layer}: Kanal {channel} auf null gesetzt"],
  "change.title": ["Change", "Verändern"],
  "change.turn": ["Turn", "Drehen"],
  "change.unit-weight": ["{name} from unit {from} to unit {channel}", "{name} von Einheit {from} zu Einheit {channel}"],
  "change.was": ["as trained: {was}", "wie trainiert: {was}"],
  "change.weight": ["{name}, row {row}, column {column}", "{name}, Zeile {row}, Spalte {column}"],
  "change.zero": ["Set channel {channel} to zero", "Kanal {channel} auf null setzen"],
  "draw.all": ["all classes", "alle Klassen"],
  "draw.camera": ["Camera", "Kamera"],
  "draw.canvas": ["Drawing area. It needs a pointer; by keyboard, choose a test image or a file.", "Zeichenfläche. Sie braucht einen Zeiger; mit der Tastatur ein Testbild oder eine Datei wählen."],
  "draw.choose": ["Choose a picture …", "Bild auswählen …"],
  "draw.clear": ["Clear", "Leeren"],
  "draw.count": ["{count} images", "{count} Bilder"],
  "draw.fit": ["Scale and centre what I draw as the training images are", "Gezeichnetes so skalieren und zentrieren wie die Trainingsbilder"],
  "draw.given": ["as they come", "wie sie kommen"],
  "draw.hint": ["Draw here, or drop a picture", "Hier zeichnen, oder ein Bild hierher ziehen"],
  "draw.images": ["Test images", "Testbilder"],
  "draw.legend": ["✗: the network took it for another class.", "✗: Das Netz hielt es für eine andere Klasse."],
  "draw.no-camera": ["The camera could not be opened: the browser or you refused it, or there is none.", "Die Kamera ließ sich nicht öffnen: Der Browser oder du hast es abgelehnt, oder es gibt keine."],
  "draw.no-file": ["Expected a picture, got something else. Drop the file of an image.", "Erwartet war ein Bild, es kam etwas anderes. Ziehe die Datei eines Bildes hierher."],
  "draw.only": ["Class", "Klasse"],
  "draw.order": ["Order", "Reihenfolge"],
  "draw.pasted": ["pasted picture", "eingefügtes Bild"],
  "draw.pen": ["Pen", "Stift"],
  "draw.redo": ["Redo", "Wiederholen"],
  "draw.sources": ["A picture can also be dropped anywhere on this page, or pasted. It stays on your machine.", "Ein Bild lässt sich auch irgendwo auf diese Seite ziehen oder einfügen. Es bleibt auf deinem Gerät."],
  "draw.stop": ["Stop the camera", "Kamera anhalten"],
  "draw.tile": ["{name}, {share} for it, {id}", "{name}, {share} dafür, {id}"],
  "draw.title": ["Draw or drop", "Zeichnen oder ablegen"],
  "draw.undo": ["Undo", "Rückgängig"],
  "draw.unreadable": ["Expected {name} to be a picture, but this browser cannot read it. Try a PNG or JPEG.", "{name} sollte ein Bild sein, aber dieser Browser kann es nicht lesen. Versuche es mit PNG oder JPEG."],
  "draw.worst": ["worst errors first", "größte Fehler zuerst"],
  "frame.footer": ["This page is complete: it fetches nothing and sends nothing.", "Diese Seite ist vollständig: Sie lädt nichts nach und sendet nichts."],
  "frame.language": ["Language", "Sprache"],
  "frame.sections": ["Sections", "Bereiche"],
  "frame.skip": ["Skip to the content", "Zum Inhalt springen"],
  "frame.theme.auto": ["Theme: auto", "Farben: automatisch"],
  "frame.theme.dark": ["Theme: dark", "Farben: dunkel"],
  "frame.theme.light": ["Theme: light", "Farben: hell"],
  "learn.path": ["Two minutes", "Zwei Minuten"],
  "learn.path.1": ["An image is a grid of numbers. Draw a digit, or choose a test image.", "Ein Bild ist ein Gitter von Zahlen. Zeichne eine Ziffer oder wähle ein Testbild."],
  "learn.path.2": ["The first layer makes feature maps of it: each map shows where one pattern of the layer occurs.", "Die erste Schicht macht daraus Merkmalskarten: Jede zeigt, wo ein Muster der Schicht vorkommt."],
  "learn.path.3": ["Click a bright pixel of a map. The orange box in the image is all that this number has seen.", "Klicke auf ein helles Pixel einer Karte. Der orange Rahmen im Bild ist alles, was diese Zahl gesehen hat."],
  "learn.path.4": ["Patch times kernel, added up, plus a bias, then the activation: that is the pixel’s number. Every number of the network is made so.", "Ausschnitt mal Kern, aufsummiert, plus Bias, dann die Aktivierung: Das ist die Zahl des Pixels. So entsteht jede Zahl des Netzes."],
  "learn.path.5": ["Go to the last layer and follow the way back: each step leads to the number that counted most.", "Gehe zur letzten Schicht und folge dem Weg zurück: Jeder Schritt führt zur Zahl, die am meisten zählte."],
  "learn.path.6": ["Choose a class, and see what speaks for and against it.", "Wähle eine Klasse und sieh, was für und gegen sie spricht."],
  "learn.show": ["Show me", "Zeig es mir"],
  "learn.showStep": ["Show me step {step}", "Zeig mir Schritt {step}"],
  "learn.terms": ["Words", "Wörter"],
  "now.announce": ["Most probable: {name}, {share}", "Am wahrscheinlichsten: {name}, {share}"],
  "now.blank": ["Nothing drawn yet", "Noch nichts gezeichnet"],
  "now.changed": ["The network or the image is changed; the marks show it unchanged.", "Netz oder Bild sind verändert; die Striche zeigen es unverändert."],
  "now.not-live": ["A layer of this network is not computed here: only the images that Python recorded have a prediction.", "Eine Schicht dieses Netzes wird hier nicht berechnet: Nur die von Python aufgezeichneten Bilder haben eine Vorhersage."],
  "now.probabilities": ["Probabilities", "Wahrscheinlichkeiten"],
  "now.right": ["Right: it is {name}.", "Richtig: Es ist {name}."],
  "now.seen": ["What the network sees:", "Was das Netz sieht:"],
  "now.seen-label": ["The image as the network sees it, {size}", "Das Bild, wie das Netz es sieht, {size}"],
  "now.title": ["Prediction", "Vorhersage"],
  "now.wrong": ["Wrong: it is {name}.", "Falsch: Es ist {name}."],
  "quiz.about": ["Shapes, parameters and results on the walk are hidden until you work them out. A result may be off by 2 %.", "Formen, Parameter und Ergebnisse im Rundgang sind verdeckt, bis du sie ausrechnest. Ein Ergebnis darf um 2 % abweichen."],
  "quiz.check": ["Check", "Prüfen"],
  "quiz.guess": ["Your answer: {what}", "Deine Antwort: {what}"],
  "quiz.hint": ["Work out the hidden numbers above; what you need is on this page.", "Rechne die verdeckten Zahlen oben aus; was du dafür brauchst, steht auf dieser Seite."],
  "quiz.noNumber": ["Enter a number.", "Gib eine Zahl ein."],
  "quiz.on": ["Hide numbers until I guess them", "Zahlen verdecken, bis ich sie errate"],
  "quiz.parameters": ["Parameters of this layer", "Parameter dieser Schicht"],
  "quiz.score": ["{right} of {asked} right", "{right} von {asked} richtig"],
  "quiz.shape": ["Shape of what comes out", "Form der Ausgabe"],
  "quiz.show": ["Show", "Zeigen"],
  "quiz.title": ["Quiz", "Quiz"],
  "quiz.wrong": ["Not yet; try again.", "Noch nicht; versuche es noch einmal."],
  "tab.change": ["Change", "Verändern"],
  "tab.draw": ["Draw", "Zeichnen"],
  "tab.learn": ["Learn", "Lernen"],
  "tab.train": ["Train", "Trainieren"],
  "tab.walk": ["Walk", "Rundgang"],
  "term.activation": ["activation", "Aktivierung"],
  "term.activation.is": ["The function behind a layer’s sums, and the number that it gives.", "Die Funktion hinter den Summen einer Schicht und die Zahl, die sie liefert."],
  "term.bias": ["bias", "Bias"],
  "term.bias.is": ["A learnt number that is added to a sum, whatever the input is.", "Eine gelernte Zahl, die zu einer Summe kommt, gleich wie die Eingabe ist."],
  "term.channel": ["channel", "Kanal"],
  "term.channel.is": ["One of the layers of numbers that an image or a set of feature maps consists of, such as red, green and blue.", "Eine der Zahlenebenen, aus denen ein Bild oder ein Satz von Merkmalskarten besteht, etwa Rot, Grün und Blau."],
  "term.contribution": ["contribution", "Beitrag"],
  "term.contribution.is": ["A unit’s value times its weight for a class: what it adds to the score of that class.", "Der Wert einer Einheit mal ihrem Gewicht für eine Klasse: was sie zur Punktzahl der Klasse hinzufügt."],
  "term.convolution": ["convolution", "Faltung"],
  "term.convolution.is": ["A small kernel moves over its input; at each place the products of the two are added up.", "Ein kleiner Kern wandert über die Eingabe; an jeder Stelle werden die Produkte der beiden addiert."],
  "term.crossEntropy": ["cross-entropy", "Kreuzentropie"],
  "term.crossEntropy.is": ["The loss of a classifier: minus the logarithm of the probability of the true class, averaged over the images.", "Der Verlust eines Klassifikators: minus der Logarithmus der Wahrscheinlichkeit der wahren Klasse, gemittelt über die Bilder."],
  "term.dense": ["dense layer", "dichte Schicht"],
  "term.dense.is": ["A layer in which each unit has a weight for every number that enters.", "Eine Schicht, in der jede Einheit für jede eintretende Zahl ein Gewicht hat."],
  "term.depthwise": ["depthwise convolution", "kanalweise Faltung"],
  "term.depthwise.is": ["A convolution in which each channel has kernels of its own, and channels are not added up.", "Eine Faltung, in der jeder Kanal eigene Kerne hat und Kanäle nicht addiert werden."],
  "term.dropout": ["dropout", "Dropout"],
  "term.dropout.is": ["In training, a share of the numbers is set to zero at random; when the network is used, nothing changes.", "Im Training wird ein Teil der Zahlen zufällig null gesetzt; in der Anwendung ändert sich nichts."],
  "term.featureMap": ["feature map", "Merkmalskarte"],
  "term.featureMap.is": ["The numbers that one kernel gives at all places: an image of where its pattern occurs.", "Die Zahlen, die ein Kern an allen Stellen liefert: ein Bild davon, wo sein Muster vorkommt."],
  "term.flatten": ["flatten", "Flatten"],
  "term.flatten.is": ["Puts all numbers of the feature maps into one row.", "Stellt alle Zahlen der Merkmalskarten in eine Reihe."],
  "term.gradCam": ["Grad-CAM", "Grad-CAM"],
  "term.gradCam.is": ["Adds up the last feature maps, each weighted by how much the score of the class grows with it.", "Addiert die letzten Merkmalskarten, jede danach gewichtet, wie stark die Punktzahl der Klasse mit ihr wächst."],
  "term.gradient": ["gradient", "Gradient"],
  "term.gradient.is": ["How fast the loss changes when one weight changes, for every weight.", "Wie schnell sich der Verlust ändert, wenn sich ein Gewicht ändert, für jedes Gewicht."],
  "term.kernel": ["kernel", "Kern"],
  "term.kernel.is": ["The learnt weights that a convolution multiplies a patch with; also called filter.", "Die gelernten Gewichte, mit denen eine Faltung einen Ausschnitt multipliziert; auch Filter genannt."],
  "term.layer": ["layer", "Schicht"],
  "term.layer.is": ["One step of the network: takes numbers, gives numbers.", "Ein Schritt des Netzes: nimmt Zahlen, liefert Zahlen."],
  "term.learningRate": ["learning rate", "Lernrate"],
  "term.learningRate.is": ["How far a step of the training moves each weight against its gradient.", "Wie weit ein Trainingsschritt jedes Gewicht gegen seinen Gradienten bewegt."],
  "term.normalization": ["batch normalization", "Batch-Normalisierung"],
  "term.normalization.is": ["Brings the numbers of a channel to mean 0 and variance 1, then scales and moves them by two learnt numbers.", "Bringt die Zahlen eines Kanals auf Mittelwert 0 und Varianz 1, dann skaliert und verschiebt sie mit zwei gelernten Zahlen."],
  "term.occlusion": ["occlusion", "Verdeckung"],
  "term.occlusion.is": ["Covers one patch of the image after another, and sees how far the score of the class falls.", "Verdeckt einen Ausschnitt des Bildes nach dem anderen und sieht, wie weit die Punktzahl der Klasse fällt."],
  "term.padding": ["padding", "Auffüllung"],
  "term.padding.is": ["Zeros around the input, so that the window fits at the edge too.", "Nullen um die Eingabe herum, damit das Fenster auch am Rand passt."],
  "term.parameter": ["parameter", "Parameter"],
  "term.parameter.is": ["A number that training chooses: a weight or a bias.", "Eine Zahl, die das Training bestimmt: ein Gewicht oder ein Bias."],
  "term.patch": ["patch", "Ausschnitt"],
  "term.patch.is": ["The part of a layer’s input that lies under the window for one place of the output.", "Der Teil der Eingabe einer Schicht, der für eine Stelle der Ausgabe unter dem Fenster liegt."],
  "term.pooling": ["pooling", "Pooling"],
  "term.pooling.is": ["Makes maps smaller: of each window only the largest number, or the mean, goes on.", "Verkleinert Karten: Von jedem Fenster geht nur die größte Zahl oder der Mittelwert weiter."],
  "term.product": ["multiplication", "Multiplikation"],
  "term.product.is": ["A layer’s cost is counted in multiplications, each of a number with a weight.", "Die Kosten einer Schicht zählt man in Multiplikationen, je einer Zahl mit einem Gewicht."],
  "term.receptiveField": ["receptive field", "rezeptives Feld"],
  "term.receptiveField.is": ["The part of the image that a number of some layer depends on.", "Der Teil des Bildes, von dem eine Zahl einer Schicht abhängt."],
  "term.relu": ["ReLU", "ReLU"],
  "term.relu.is": ["An activation that lets positive numbers pass and makes negative ones zero.", "Eine Aktivierung, die positive Zahlen durchlässt und negative null setzt."],
  "term.score": ["score (logit)", "Punktzahl (Logit)"],
  "term.score.is": ["What the last layer adds up for a class, before softmax makes a probability of it.", "Was die letzte Schicht für eine Klasse aufsummiert, bevor Softmax eine Wahrscheinlichkeit daraus macht."],
  "term.softmax": ["softmax", "Softmax"],
  "term.softmax.is": ["Turns the scores of all classes into probabilities that add up to 1.", "Macht aus den Punktzahlen aller Klassen Wahrscheinlichkeiten, die zusammen 1 ergeben."],
  "term.stride": ["stride", "Schrittweite"],
  "term.stride.is": ["How many pixels a window moves from one place to the next.", "Um wie viele Pixel ein Fenster von einer Stelle zur nächsten rückt."],
  "unlike.border.high": ["bright border: {what}", "heller Rand: {what}"],
  "unlike.border.low": ["dark border: {what}", "dunkler Rand: {what}"],
  "unlike.brightest.high": ["glaring: {what}", "grell: {what}"],
  "unlike.brightest.low": ["dim: {what}", "matt: {what}"],
  "unlike.brightness.high": ["bright: {what}", "hell: {what}"],
  "unlike.brightness.low": ["dark: {what}", "dunkel: {what}"],
  "unlike.colour.high": ["colourful: {what}", "bunt: {what}"],
  "unlike.colour.low": ["colourless: {what}", "farblos: {what}"],
  "unlike.column": ["off-centre: {what}", "nicht in der Mitte: {what}"],
  "unlike.contrast.high": ["high contrast: {what}", "kontrastreich: {what}"],
  "unlike.contrast.low": ["low contrast: {what}", "kontrastarm: {what}"],
  "unlike.darkest.high": ["washed out: {what}", "ausgewaschen: {what}"],
  "unlike.darkest.low": ["deep shadows: {what}", "tiefe Schatten: {what}"],
  "unlike.empty": ["empty: {what}", "leer: {what}"],
  "unlike.inverted": ["inverted: {what}; it would fit as 255 − pixel", "umgekehrt: {what}; es passte als 255 − Pixel"],
  "unlike.of.border": ["its border is at grey level {value}, that of training images at {least} to {most}", "sein Rand liegt bei Graustufe {value}, der von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.brightest": ["its brightest part is at grey level {value}, that of training images at {least} to {most}", "sein hellster Teil liegt bei Graustufe {value}, der von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.brightness": ["its mean is at grey level {value}, that of training images at {least} to {most}", "sein Mittelwert liegt bei Graustufe {value}, der von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.colour": ["the mean difference between its channels is {value}, that of training images at {least} to {most}", "der mittlere Unterschied seiner Farbkanäle ist {value}, der von Trainingsbildern {least} bis {most}"],
  "unlike.of.column": ["its content is centred at a width of {value}, that of training images at {least} to {most}", "die Mitte seines Inhalts liegt bei {value} der Breite, die von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.contrast": ["the standard deviation of its grey levels is {value}, that of training images at {least} to {most}", "die Standardabweichung seiner Graustufen ist {value}, die von Trainingsbildern {least} bis {most}"],
  "unlike.of.darkest": ["its darkest part is at grey level {value}, that of training images at {least} to {most}", "sein dunkelster Teil liegt bei Graustufe {value}, der von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.row": ["its content is centred at a height of {value}, that of training images at {least} to {most}", "die Mitte seines Inhalts liegt bei {value} der Höhe, die von Trainingsbildern bei {least} bis {most}"],
  "unlike.of.sharpness": ["the mean difference of its neighbouring pixels is {value}, that of training images at {least} to {most}", "der mittlere Unterschied benachbarter Pixel ist {value}, der von Trainingsbildern {least} bis {most}"],
  "unlike.of.spread": ["the spread of its content is {value}, that of training images at {least} to {most}", "die Streuung seines Inhalts ist {value}, die von Trainingsbildern {least} bis {most}"],
  "unlike.range": ["wrong range: {what}; scale its pixels to 0 … 255", "falscher Wertebereich: {what}; seine Pixel gehören auf 0 … 255 gestreckt"],
  "unlike.row": ["off-centre: {what}", "nicht in der Mitte: {what}"],
  "unlike.sharpness.high": ["rough: {what}", "rau: {what}"],
  "unlike.sharpness.low": ["blurred: {what}", "unscharf: {what}"],
  "unlike.spread.high": ["large or scattered: {what}", "groß oder verstreut: {what}"],
  "unlike.spread.low": ["small: {what}", "klein: {what}"],
  "walk.against": ["Σ of all against", "Σ aller dagegen"],
  "walk.back": ["The way back to the image", "Der Weg zurück zum Bild"],
  "walk.backHint": ["Each step goes to the number that counts most for the one above.", "Jeder Schritt geht zur Zahl, die für die darüber am meisten zählt."],
  "walk.bias": ["+ bias", "+ Bias"],
  "walk.chooseClass": ["Choose a class", "Wähle eine Klasse"],
  "walk.chooseFirstMaps": ["Choose one of the {count} feature maps of {layer} (the first {shown} are here)", "Wähle eine der {count} Merkmalskarten von {layer} (hier die ersten {shown})"],
  "walk.chooseLayer": ["Choose a layer", "Wähle eine Schicht"],
  "walk.chooseMap": ["Choose one of the {count} feature maps of {layer}", "Wähle eine der {count} Merkmalskarten von {layer}"],
  "walk.choosePixel": ["Click a pixel of the map, go there by the arrow keys, or type it", "Klicke auf ein Pixel der Karte, geh mit den Pfeiltasten hin oder gib es ein"],
  "walk.chooseUnit": ["Click a unit, go there by the arrow keys, or type its number", "Klicke auf eine Einheit, geh mit den Pfeiltasten hin oder gib ihre Nummer ein"],
  "walk.column": ["Column", "Spalte"],
  "walk.comesOut": ["comes out: {what}, from {low} to {high}", "heraus kommt: {what}, von {low} bis {high}"],
  "walk.compute": ["Compute", "Berechnen"],
  "walk.computing": ["Computing …", "Wird berechnet …"],
  "walk.contributions": ["What the numbers before the last layer add to the score, the largest first.", "Was die Zahlen vor der letzten Schicht zur Punktzahl beitragen, die größten zuerst."],
  "walk.different": ["Recomputed here: {result}, not equal to the network’s own number, {own} (they differ by {difference}).", "Hier nachgerechnet: {result}, ungleich der Zahl des Netzes, {own} (Unterschied: {difference})."],
  "walk.enters": ["enters", "hinein kommt"],
  "walk.equal": ["Recomputed here: {result}, equal to the network’s own number, {own} (they differ by {difference}).", "Hier nachgerechnet: {result}, gleich der Zahl des Netzes, {own} (Unterschied: {difference})."],
  "walk.field": ["the image, with the {height}×{width} pixels that the number depends on:", "das Bild, mit den {height}×{width} Pixeln, von denen die Zahl abhängt:"],
  "walk.fieldLabel": ["the image, with a box around the {height}×{width} pixels that the number depends on", "das Bild, mit einem Rahmen um die {height}×{width} Pixel, von denen die Zahl abhängt"],
  "walk.for": ["Σ of all for", "Σ aller dafür"],
  "walk.forAndAgainst": ["What speaks for and against {name}", "Was für und gegen {name} spricht"],
  "walk.gradCam": ["Grad-CAM: where the last feature maps speak for {name}.", "Grad-CAM: wo die letzten Merkmalskarten für {name} sprechen."],
  "walk.grey": ["Each map from black, its lowest value, to white, its highest.", "Jede Karte von Schwarz, ihrem kleinsten Wert, bis Weiß, ihrem größten."],
  "walk.image": ["the image", "das Bild"],
  "walk.input": ["input", "Eingang"],
  "walk.inputChannel": ["Input channel, of {count}, and what it adds:", "Eingangskanal, von {count}, und was er beiträgt:"],
  "walk.kernel": ["kernel", "Kern"],
  "walk.largest": ["The largest contributions", "Die größten Beiträge"],
  "walk.largestOf": ["The largest of {count} numbers under the window.", "Die größte von {count} Zahlen unter dem Fenster."],
  "walk.layerLabel": ["{name}, {type}: {shape}; {parameters} parameters, {products} multiplications", "{name}, {type}: {shape}; {parameters} Parameter, {products} Multiplikationen"],
  "walk.lead": ["Choose a layer, one of its maps and a pixel: the page shows where the number there comes from, back to the image.", "Wähle eine Schicht, eine ihrer Karten und ein Pixel: Die Seite zeigt, woher die Zahl dort kommt, bis zurück zum Bild."],
  "walk.map": ["map {channel}", "Karte {channel}"],
  "walk.mapKeys": ["{what}, {where}; the arrow keys choose a pixel", "{what}, {where}; die Pfeiltasten wählen ein Pixel"],
  "walk.mapOf": ["map {channel} of {layer}", "Karte {channel} von {layer}"],
  "walk.mean": ["mean", "Mittelwert"],
  "walk.meanOf": ["The mean of {count} numbers under the window.", "Der Mittelwert von {count} Zahlen unter dem Fenster."],
  "walk.merge.add": ["The sum of what comes from:", "Die Summe dessen, was kommt von:"],
  "walk.merge.maximum": ["The largest of what comes from:", "Das Größte dessen, was kommt von:"],
  "walk.merge.mean": ["The mean of what comes from:", "Der Mittelwert dessen, was kommt von:"],
  "walk.merge.minimum": ["The smallest of what comes from:", "Das Kleinste dessen, was kommt von:"],
  "walk.merge.multiply": ["The product of what comes from:", "Das Produkt dessen, was kommt von:"],
  "walk.merge.subtract": ["The first less the others of what comes from:", "Das Erste minus die anderen, aus:"],
  "walk.noArithmetic": ["The page knows no arithmetic for {type}.", "Diese Seite kennt keine Rechnung für {type}."],
  "walk.noHeat": ["This network does not allow it.", "Dieses Netz erlaubt es nicht."],
  "walk.normalized": ["(x − mean) ÷ √(variance + {epsilon}) × gamma + beta", "(x − Mittelwert) ÷ √(Varianz + {epsilon}) × Gamma + Beta"],
  "walk.nothingLearnt": ["nothing learnt", "nichts gelernt"],
  "walk.occlusion": ["Occlusion: the score of {name} falls where orange is covered, and grows where blue is.", "Verdeckung: Die Punktzahl von {name} fällt, wo Orange verdeckt wird, und wächst, wo Blau verdeckt wird."],
  "walk.off": ["This layer is switched off.", "Diese Schicht ist abgeschaltet."],
  "walk.others": ["the other {count}", "die anderen {count}"],
  "walk.ownNumber": ["The network’s number is {value}.", "Die Zahl des Netzes ist {value}."],
  "walk.padding": ["padding", "Auffüllung"],
  "walk.patch": ["patch", "Ausschnitt"],
  "walk.plusOffset": ["+ offset", "+ Verschiebung"],
  "walk.probability": ["probability", "Wahrscheinlichkeit"],
  "walk.product": ["product", "Produkt"],
  "walk.products": ["products", "Produkte"],
  "walk.row": ["Row", "Zeile"],
  "walk.scaled": ["normalized", "normalisiert"],
  "walk.score": ["= score of the class", "= Punktzahl der Klasse"],
  "walk.sizes": ["{parameters} parameters, {products} multiplications", "{parameters} Parameter, {products} Multiplikationen"],
  "walk.softmax": ["softmax over all classes", "Softmax über alle Klassen"],
  "walk.sourceChannel": ["sum of channel {unit}", "Summe von Kanal {unit}"],
  "walk.sourcePixel": ["map {channel}, row {row}, column {column}", "Karte {channel}, Zeile {row}, Spalte {column}"],
  "walk.sourceUnit": ["unit {unit}", "Einheit {unit}"],
  "walk.sumOfAll": ["Σ of all {count} products", "Σ aller {count} Produkte"],
  "walk.sumOfChannel": ["Σ of the products of channel {channel}", "Σ der Produkte von Kanal {channel}"],
  "walk.timesScale": ["× scale", "× Faktor"],
  "walk.title": ["Walk", "Rundgang"],
  "walk.unchanged": ["{type} hands its input on unchanged when the network is used.", "{type} gibt seine Eingabe unverändert weiter, wenn das Netz angewendet wird."],
  "walk.unit": ["Unit", "Einheit"],
  "walk.unitsOf": ["the units of {layer}", "die Einheiten von {layer}"],
  "walk.value": ["value", "Wert"],
  "walk.variance": ["variance", "Varianz"],
  "walk.weight": ["weight", "Gewicht"],
  "walk.wherePixel": ["row {row}, column {column}, map {channel}", "Zeile {row}, Spalte {column}, Karte {channel}"],
  "walk.whereUnit": ["unit {unit}", "Einheit {unit}"],
  "walk.zeroed": ["This channel is set to zero.", "Dieser Kanal ist auf null gesetzt."],
};

let column = 0;
let numbers = new Intl.NumberFormat("en");

/**
 * Choose the language; an unknown one is English.
 * @param {string} language
 */
export function setLanguage(language) {
  column = Math.max(
    0,
    LANGUAGES.findIndex(([code]) => language.toLowerCase().split("-")[0] === code),
  );
  numbers = new Intl.NumberFormat(LANGUAGES[column][0]);
  document.documentElement.lang = LANGUAGES[column][0];
}

/** The chosen language. */
export function language() {
  return LANGUAGES[column][0];
}

/**
 * The text for a key; numbers among the values are written as the language writes them.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const text = TEXTS[key]?.[column] ?? TEXTS[key]?.[0] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? numbers.format(value) : String(value ?? "");
  });
}

/**
 * A number with so many digits behind the point.
 * @param {number} value
 * @param {number} [digits]
 */
export function number(value, digits = 2) {
  return new Intl.NumberFormat(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/**
 * A share as a percentage: 100 only when nothing is missing, 0 only when nothing is there.
 * @param {number} share
 * @param {number} [digits]
 */
export function percent(share, digits = 1) {
  const step = 10 ** -digits;
  let shown = 100 * share;
  if (share < 1) shown = Math.min(shown, 100 - step);
  if (share > 0) shown = Math.max(shown, step);
  return `${number(shown, digits)} %`;
}

/**
 * Fill every element that names its text (`data-t`), its label (`data-t-label`) or its title (`data-t-title`).
 * @param {ParentNode} root
 */
export function translate(root) {
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = t(one.getAttribute("data-t") ?? "");
  for (const one of root.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.getAttribute("data-t-label") ?? ""));
  for (const one of root.querySelectorAll("[data-t-title]")) one.setAttribute("title", t(one.getAttribute("data-t-title") ?? ""));
}
